//! The function itself: what it adds to the database's time, how it starts, and what it takes.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Scale, median, ms,
    speed::{ADMIN, event},
    support::{
        block_on,
        database::{Database, cluster},
        function::{Function, release_binary},
        proxy::round_trips,
        read,
    },
};

pub fn run(scale: &Scale) {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run(ADMIN));
    warm(&database, if scale.smoke { 20 } else { 1000 });
    cold(&database, if scale.smoke { 1 } else { 31 });
    sizes(&database);
}

/// Wall time of warm requests beside what the server's log reports for their statements.
fn warm(database: &Database, rounds: usize) {
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let page = event("");
    let preflight = page.replace("\"method\":\"GET\"", "\"method\":\"OPTIONS\"");
    for _ in 0..10 {
        time_of(&function, &page);
    }
    let (pages, preflights): (Vec<_>, Vec<_>) =
        (0..rounds).map(|_| (time_of(&function, &page), time_of(&function, &preflight))).unzip();
    function.stop();
    // Logging takes time of its own, so that these rounds are others. The server logs one line
    // each for binding, which is planning, and for executing a statement.
    block_on(database.run("ALTER ROLE media_usage SET log_duration = on"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    for _ in 0..10 {
        time_of(&function, &page);
    }
    let before = fs::metadata(&cluster().log).unwrap().len();
    for _ in 0..rounds {
        time_of(&function, &page);
    }
    function.stop();
    block_on(database.run("ALTER ROLE media_usage RESET log_duration"));
    let log = fs::read(&cluster().log).unwrap();
    let reported =
        statement_times(&String::from_utf8_lossy(&log[usize::try_from(before).unwrap()..]));
    assert_eq!(reported.len(), 4 * rounds);
    let per_request: Vec<Duration> =
        reported.chunks_exact(4).map(|times| times.iter().sum()).collect();
    let [page, statements, exchange] =
        [pages, per_request, preflights].map(|times| ms(median(times)));
    println!("## Warm, on the recorded cases' rows: a page of 67 users\n");
    println!("| | ms |\n|---|---|");
    println!("| a request, event in and answer out | {page:.2} |");
    println!("| - its two statements, by the server's own log | {statements:.2} |");
    println!(
        "| - the exchange with the Runtime API, as an OPTIONS request takes it | {exchange:.2} |"
    );
    println!(
        "| - the rest: the function and two round trips | {:.2} |",
        page - statements - exchange
    );
}

fn time_of(function: &Function, event: &str) -> Duration {
    function.timed(event.as_bytes()).0
}

/// From lines such as `synapse-media-usage: LOG:  duration: 0.123 ms`.
fn statement_times(log: &str) -> Vec<Duration> {
    log.lines()
        .filter_map(|line| {
            line.split_once("synapse-media-usage: LOG:  duration: ")?.1.split_once(" ms")
        })
        .map(|(ms, _)| Duration::from_secs_f64(ms.parse::<f64>().unwrap() / 1000.0))
        .collect()
}

/// From exec to the first answer, beside psql, and where the time goes.
fn cold(database: &Database, rounds: usize) {
    let Some(ca) = &cluster().ca else {
        println!("\nThis PostgreSQL was built without TLS: no cold start.");
        return;
    };
    let verified = format!("{}?sslmode=verify-full&sslrootcert={ca}", database.url())
        .replace("127.0.0.1", "localhost");
    let plain = format!("{}?sslmode=disable", database.url());
    let socket = format!(
        "postgres://media_usage@/{}?host={}&port={}",
        database.name,
        cluster().socket_dir,
        cluster().port
    );
    let page = event("");
    let preflight = page.replace("\"method\":\"GET\"", "\"method\":\"OPTIONS\"");
    let start = |url: Option<&str>, event: &str| {
        let variables: Vec<_> = url.map(|url| ("DATABASE_URL", url)).into_iter().collect();
        let start = Instant::now();
        let function = Function::start(&variables);
        let response = function.invoke(event.as_bytes()).unwrap();
        let time = start.elapsed();
        assert_eq!(response["statusCode"], if event == page { 200 } else { 204 });
        function.stop();
        time
    };
    let psql = || {
        let start = Instant::now();
        let psql = Command::new(format!("{}/psql", cluster().bin))
            .args(["-X", &verified.replace("p%40ss%2Fword", "p%40ss%2fword"), "-c", "select 1"])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(psql.success());
        start.elapsed()
    };
    release_binary();
    let mut times: [Vec<Duration>; 6] = Default::default();
    for _ in 0..rounds {
        times[0].push(psql());
        times[1].push(start(None, &preflight));
        times[2].push(start(Some(&socket), &preflight));
        times[3].push(start(Some(&plain), &preflight));
        times[4].push(start(Some(&verified), &preflight));
        times[5].push(start(Some(&verified), &page));
    }
    let [psql, process, connected, authenticated, encrypted, answered] =
        times.map(|times| ms(median(times)));
    println!("\n## Cold: from exec to the first answer\n");
    println!("| | ms |\n|---|---|");
    println!("| `psql -c 'select 1'`, verified TLS and SCRAM | {psql:.1} |");
    println!("| the function, verified TLS and SCRAM, a page of 67 users | {answered:.1} |");
    println!("| the function as a part of psql | {:.2} |", answered / psql);
    println!("| process, configuration and runtime | {process:.1} |");
    println!("| + connection, by socket and trust | {:.1} |", connected - process);
    println!("| + TCP and SCRAM | {:.1} |", authenticated - connected);
    println!("| + TLS, verified | {:.1} |", encrypted - authenticated);
    println!("| + preparing and running the first statements | {:.1} |", answered - encrypted);
}

/// Binary, memory, statements and round trips.
fn sizes(database: &Database) {
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    for _ in 0..100 {
        function.invoke(event("limit=1000").as_bytes()).unwrap();
    }
    let ordinary = function.peak_memory();
    block_on(database.run(&read("tests/bench/largest_page.sql")));
    function.invoke(event("limit=9223372036854775807").as_bytes()).unwrap();
    let largest = function.peak_memory();
    function.stop();
    let binary = fs::metadata(release_binary()).unwrap().len();
    println!("\n## What it takes\n");
    println!("| | |\n|---|---|");
    println!("| stripped binary | {:.2} MB |", megabytes(binary));
    println!("| peak resident memory, ordinary pages | {:.1} MB |", megabytes(ordinary));
    println!(
        "| peak resident memory, the largest page there can be | {:.1} MB |",
        megabytes(largest)
    );
    let refused = event("").replace("Bearer bench", "Bearer none");
    let [page, refused] = round_trips(database, [&event(""), &refused]);
    println!("| statements and round trips of a warm page | 2, {page} |");
    println!("| statements and round trips of a warm refusal | 1, {refused} |");
}

#[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
