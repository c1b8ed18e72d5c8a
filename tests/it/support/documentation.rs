//! The commands that the documentation has people type.

use std::{fs, path::Path};

use super::{project, read};

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// What stands behind the opening fence, such as `sh run`.
    pub mark: String,
    /// What is inside.
    pub text: String,
}

/// Every page of the repository, relative to it.
pub fn pages() -> Vec<String> {
    fn collect(folder: &Path, pages: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_made = ["target", "node_modules"].contains(&name);
            if path.is_dir() && !is_made && (!name.starts_with('.') || name == ".github") {
                collect(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let page = path.strip_prefix(project()).unwrap();
                pages.push(page.to_str().unwrap().to_owned());
            }
        }
    }
    let mut pages = Vec::new();
    collect(project(), &mut pages);
    pages
}

/// The fenced blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let text = read(page);
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(mark) = line.trim_start().strip_prefix("```") {
            let inside = lines.by_ref().take_while(|line| line.trim_start() != "```");
            let text = inside.flat_map(|line| [line, "\n"]).collect();
            blocks.push(Block { mark: mark.to_owned(), text });
        }
    }
    blocks
}

/// The one block of a page that begins so.
pub fn block(page: &str, start: &str) -> String {
    let mut blocks: Vec<_> =
        blocks(page).into_iter().filter(|block| block.text.starts_with(start)).collect();
    assert_eq!(blocks.len(), 1, "{page}: {start}");
    blocks.remove(0).text
}
