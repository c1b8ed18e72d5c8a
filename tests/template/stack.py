"""A stack of template.yaml, offline: for a set of parameters SAM's own translator makes CloudFormation of the template, and the
few functions of CloudFormation that it uses are computed here."""

import copy
import functools
import json
import logging
import os
import re
from pathlib import Path

from boto3.session import Session
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

# The translator warns that nobody publishes its metrics.
logging.disable()

ROOT = Path(__file__).resolve().parents[2]
# Or what tests/release/check has packaged.
TEMPLATE = yaml_parse(Path(os.environ.get("TEMPLATE", ROOT / "template.yaml")).read_text())

# Neither is one that the template could name for all.
REGION, ACCOUNT = "sa-east-1", "123456789012"
PSEUDO = {
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::StackName": "media-usage",
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/media-usage/1e7b0f2a-3c4d-11f0-8a9b-0a1b2c3d4e5f",
}
SUBNETS = {"subnet-0a": "vpc-0a", "subnet-0b": "vpc-0a", "subnet-0c": "vpc-0c"}

# --- Parameter sets ---

SECRET_ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:synapse/replica-AbCdEf"
# As RDS names the master user's.
RDS_ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:rds!db-0a1b-AbCdEf"
MAS_ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:mas-GhIjKl"
KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/0a1b"
LAYER_ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer:Authorities:3"
TOPIC_ARN = f"arn:aws:sns:{REGION}:{ACCOUNT}:on-call"
BOUNDARY_ARN = f"arn:aws:iam::{ACCOUNT}:policy/boundary"
LISTENER_ARN = f"arn:aws:elasticloadbalancing:{REGION}:{ACCOUNT}:listener/app/front/0a1b/2c3d"
CERTIFICATE_ARN = f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/0a-1b"

NETWORK = {"SubnetIds": "subnet-0a,subnet-0b", "DatabaseHost": "replica.example.org"}
IAM = {**NETWORK, "SecurityGroupIds": "sg-0a", "DatabaseResourceId": "db-ABC"}
MADE = {**NETWORK, "VpcId": "vpc-0a", "DatabaseSecurityGroupId": "sg-0d", "DatabaseResourceId": "db-ABC"}
SECRET = {**NETWORK, "SecurityGroupIds": "sg-0a,sg-0b", "DatabaseAuth": "secret", "DatabaseSecretArn": SECRET_ARN}
PASSWORD = {
    **NETWORK,
    "SecurityGroupIds": "sg-0a",
    "DatabaseAuth": "password",
    "DatabasePasswordOrNone": "pa/ss@word",
}
MAS = {"MasEndpoint": "https://mas.example.org/auth", "MasSecretArn": MAS_ARN, "ServerName": "example.org"}
DOMAIN = {"DomainName": "media.example.org", "CertificateArn": CERTIFICATE_ARN}
LISTENER = {"ListenerArn": LISTENER_ARN, "ListenerHost": "matrix.example.org"}
EMAIL = {"AlarmEmail": "night-shift@example.org"}
# Each way in once, and everything at once.
SETS = {
    "iam": IAM,
    # Which logs in to the database by a password of its own.
    "proxy": {
        **MADE,
        "DatabaseResourceId": "prx-ABC",
        "HomeserverUrl": "http://matrix.example.org",
        "Ipv6": "true",
    },
    # Of an Aurora cluster that pauses.
    "secret": {**SECRET, "AlarmTopicArn": TOPIC_ARN, "ConnectTimeoutSeconds": "20", "ProbeMinutes": "0"},
    # Private: only a load balancer invokes the function.
    "password": {**PASSWORD, **LISTENER, **EMAIL, "AccountValidity": "true", "DefaultEndpoint": "false"},
    "mas": {**IAM, **MAS, "MasEndpoint": "http://mas.example.org:8080/auth"},
    "full": {
        **MADE,
        **MAS,
        **DOMAIN,
        **LISTENER,
        **EMAIL,
        "DatabaseAuth": "secret",
        "DatabaseResourceId": "",
        "DatabaseSecretArn": SECRET_ARN,
        "DatabasePort": "6432",
        "DatabaseName": "matrix",
        "DatabaseSchema": "Matrix_1",
        "DatabaseUser": "reader",
        "DatabasePooler": "pgbouncer",
        "DatabaseCaFile": "/opt/authorities.pem",
        "StatementTimeoutMs": "5000",
        "ConnectTimeoutSeconds": "1",
        "MasCacheSeconds": "120",
        "HomeserverUrl": "https://matrix.example.org:8448",
        "AccountValidity": "true",
        "SecretsKeyArn": KEY_ARN,
        "Architecture": "x86_64",
        "MemorySize": "512",
        "ReservedConcurrency": "0",
        "ReadAheadSeconds": "0",
        "ThrottlingRateLimit": "7",
        "ThrottlingBurstLimit": "9",
        "ProbeMinutes": "60",
        "ReplicationLagAlarmSeconds": "30",
        "DatabaseInstance": "replica",
        "Runbook": "https://wiki.example.org/media-usage/runbook.md",
        "LogRetentionDays": "90",
        "LayerArns": LAYER_ARN,
        "XRay": "true",
        "AlarmTopicArn": TOPIC_ARN,
        "DefaultEndpoint": "false",
        "ListenerPriority": "17",
        "Ipv6": "true",
        "PermissionsBoundaryArn": BOUNDARY_ARN,
        "LogsKeyArn": KEY_ARN,
    },
}


# --- CloudFormation, as far as the template uses it ---


class NoValue:
    """AWS::NoValue: what holds it goes away."""


class Stack:
    """The template with the parameters of a set."""

    def __init__(self, given, **pseudo):
        self.parameters = {name: str(spec.get("Default", "")) for name, spec in TEMPLATE["Parameters"].items()}
        unknown = given.keys() - self.parameters.keys()
        assert not unknown, f"no such parameters: {unknown}"
        self.parameters.update(given)
        self.pseudo = {**PSEUDO, **{f"AWS::{name}": value for name, value in pseudo.items()}}

    def bad_parameters(self):
        """The parameters that CloudFormation refuses by themselves."""
        bad = []
        for name, spec in TEMPLATE["Parameters"].items():
            value = self.parameters[name]
            if not (
                # Anchored as CloudFormation does it.
                re.fullmatch(spec.get("AllowedPattern", ".*"), value)
                and value in map(str, spec.get("AllowedValues", [value]))
                and len(value) >= spec.get("MinLength", 0)
                and (spec["Type"] != "Number" or value.isdigit())
                and (spec["Type"] != "Number" or int(value) >= spec.get("MinValue", 0))
                and (spec["Type"] != "Number" or int(value) <= spec.get("MaxValue", int(value)))
            ):
                bad.append(name)
        return bad

    def refusals(self):
        """What Rules say against the parameters together."""
        return [
            assertion["AssertDescription"]
            for rule in TEMPLATE["Rules"].values()
            if self.rule(rule.get("RuleCondition", {"Fn::Equals": ["", ""]}))
            for assertion in rule["Assertions"]
            if not self.rule(assertion["Assert"])
        ]

    def rule(self, expression):
        """Rules know functions of their own and no others."""
        if isinstance(expression, str):
            return expression
        ((function, argument),) = expression.items()
        match function:
            case "Ref":
                return self.parameters[argument]
            case "Fn::Equals":
                left, right = map(self.rule, argument)
                return left == right
            case "Fn::Not":
                return not self.rule(argument[0])
            case "Fn::And":
                return all([self.rule(each) for each in argument])
            case "Fn::Or":
                return any([self.rule(each) for each in argument])
            case "Fn::EachMemberEquals":
                members, value = map(self.rule, argument)
                return all(member == value for member in members)
            case "Fn::ValueOf":
                assert argument == ["SubnetIds", "VpcId"], argument
                return [SUBNETS[subnet] for subnet in self.parameters["SubnetIds"].split(",")]
        raise AssertionError(f"Rules know no {function}")

    @functools.cached_property
    def conditions(self):
        return {name: bool(self.value(body)) for name, body in TEMPLATE["Conditions"].items()}

    @functools.cached_property
    def translated(self):
        template = copy.deepcopy(TEMPLATE)
        template["Resources"]["Function"]["Properties"]["CodeUri"] = "s3://bucket/key"
        translator = Translator(None, Parser(), boto_session=Session(region_name=REGION))
        return translator.translate(template, parameter_values=dict(self.parameters))

    @functools.cached_property
    def resources(self):
        """All resources that there will be, by name."""
        return self.those_there("Resources")

    @functools.cached_property
    def outputs(self):
        return {name: output["Value"] for name, output in self.those_there("Outputs").items()}

    def those_there(self, section):
        things = self.translated[section].items()
        return {name: self.value(each) for name, each in things if self.is_there(each)}

    def is_there(self, thing):
        name = thing.get("Condition")
        return self.conditions[name] if isinstance(name, str) else True

    def properties(self, name):
        return self.resources[name]["Properties"]

    def of_type(self, kind):
        return {name: each["Properties"] for name, each in self.resources.items() if each["Type"] == kind}

    def value(self, thing):
        """A value with its functions computed."""
        if isinstance(thing, list):
            values = (self.value(each) for each in thing)
            return [value for value in values if value is not NoValue]
        if not isinstance(thing, dict):
            return thing
        if len(thing) == 1:
            ((function, argument),) = thing.items()
            if function in ("Ref", "Condition") and isinstance(argument, str) or function.startswith("Fn::"):
                return self.function(function, argument)
        values = ((key, self.value(each)) for key, each in thing.items() if key != "Condition" or isinstance(each, dict))
        return {key: value for key, value in values if value is not NoValue}

    def function(self, function, argument):
        match function:
            case "Ref":
                return self.reference(argument)
            case "Condition":
                return self.value(TEMPLATE["Conditions"][argument])
            case "Fn::Equals":
                left, right = map(self.value, argument)
                return str(left) == str(right)
            case "Fn::Not":
                return not self.value(argument[0])
            case "Fn::And":
                return all([self.value(each) for each in argument])
            case "Fn::Or":
                return any([self.value(each) for each in argument])
            case "Fn::If":
                condition, then, otherwise = argument
                return self.value(then if self.conditions[condition] else otherwise)
            case "Fn::FindInMap":
                name, *keys = map(self.value, argument)
                return functools.reduce(dict.__getitem__, keys, TEMPLATE["Mappings"][name])
            case "Fn::Select":
                index, values = argument
                return self.value(values)[int(index)]
            case "Fn::Split":
                delimiter, text = argument
                return self.value(text).split(delimiter)
            case "Fn::GetAtt":
                return self.attribute(*(argument.split(".", 1) if isinstance(argument, str) else argument))
            case "Fn::Sub":
                text, names = (argument, {}) if isinstance(argument, str) else argument
                names = {name: self.value(value) for name, value in names.items()}
                return re.sub(r"\$\{(!?)([^}]+)\}", lambda found: self.substitute(found, names), text)
        raise AssertionError(f"unknown function {function}")

    def substitute(self, found, names):
        literal, name = found.groups()
        if literal:
            return "${" + name + "}"
        if name in names:
            return str(names[name])
        return str(self.attribute(*name.split(".", 1)) if "." in name else self.reference(name))

    def reference(self, name):
        if name == "AWS::NoValue":
            return NoValue
        if name in self.pseudo:
            return self.pseudo[name]
        if name in self.parameters:
            value = self.parameters[name]
            return value.split(",") if TEMPLATE["Parameters"][name]["Type"].startswith("List<") else value
        self.exists(name)
        return f"<{name}>"

    def attribute(self, name, attribute):
        self.exists(name)
        # The one attribute that a policy's star can hide in.
        if self.translated["Resources"][name]["Type"] == "AWS::Logs::LogGroup" and attribute == "Arn":
            return f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:<{name}>:*"
        return f"<{name}.{attribute}>"

    def exists(self, name):
        resource = self.translated["Resources"][name]
        assert self.is_there(resource), f"{name} is used but not there"


@functools.cache
def stack(name):
    """The stack of one of SETS."""
    return Stack(SETS[name])


# --- What a person reads ---


def readable(stack):
    """All that a stack will be, as JSON; the SQL for the primary by itself."""
    resources, outputs = copy.deepcopy(stack.resources), dict(stack.outputs)
    for resource in resources.values():
        properties = resource["Properties"]
        if resource["Type"] == "AWS::CloudWatch::Dashboard":
            properties["DashboardBody"] = json.loads(properties["DashboardBody"])
        if resource["Type"] == "AWS::ApiGatewayV2::Stage":
            properties["AccessLogSettings"]["Format"] = json.loads(properties["AccessLogSettings"]["Format"])
    sql = outputs.pop("SqlForPrimary")
    defaults = {name: spec.get("Default") for name, spec in TEMPLATE["Parameters"].items()}
    given = {name: value for name, value in stack.parameters.items() if value != str(defaults[name])}
    return pretty({"Parameters": given, "Resources": resources, "Outputs": outputs}) + "\n", sql


def pretty(value, margin=0):
    """JSON of which stands in one line what fits there."""
    line = json.dumps(value, ensure_ascii=False)
    if margin > 2 and len(line) + margin <= 120 or not isinstance(value, (dict, list)) or not value:
        return line
    space = "\n" + " " * (margin + 2)
    if isinstance(value, list):
        items = [space + pretty(each, margin + 2) for each in value]
    else:
        items = [f"{space}{json.dumps(name)}: {pretty(each, margin + 2)}" for name, each in value.items()]
    first, last = ("[", "]") if isinstance(value, list) else ("{", "}")
    return first + ",".join(items) + "\n" + " " * margin + last
