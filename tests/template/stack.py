"""A stack of template.yaml, offline: for a set of parameters SAM's own translator makes CloudFormation of the template, and the
few functions of CloudFormation that it uses are computed here. A set is what a file of tests/snapshots/template has as
"Parameters": each way in once, and everything at once. `password` is the private deployment, which only a load balancer invokes,
and `secret` is for an Aurora cluster that pauses."""

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
SNAPSHOTS = ROOT / "tests/snapshots/template"
SETS = {path.stem: json.loads(path.read_text())["Parameters"] for path in sorted(SNAPSHOTS.glob("*.json"))}


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

        def is_good(value, spec):
            return (
                # Anchored as CloudFormation does it.
                re.fullmatch(spec.get("AllowedPattern", ".*"), value)
                and value in map(str, spec.get("AllowedValues", [value]))
                and len(value) >= spec.get("MinLength", 0)
                and (spec["Type"] != "Number" or value.isdigit())
                and (spec["Type"] != "Number" or spec.get("MinValue", 0) <= int(value) <= spec.get("MaxValue", int(value)))
            )

        return [name for name, spec in TEMPLATE["Parameters"].items() if not is_good(self.parameters[name], spec)]

    def refusals(self):
        """What Rules say against the parameters together."""
        return [
            assertion["AssertDescription"]
            for rule in TEMPLATE["Rules"].values()
            if self.value(rule.get("RuleCondition", True))
            for assertion in rule["Assertions"]
            if not self.value(assertion["Assert"])
        ]

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
                return all(self.value(argument))
            case "Fn::Or":
                return any(self.value(argument))
            case "Fn::EachMemberEquals":
                members, value = map(self.value, argument)
                return set(members) == {value}
            case "Fn::ValueOf":
                assert argument == ["SubnetIds", "VpcId"], argument
                return [SUBNETS[subnet] for subnet in self.reference("SubnetIds")]
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


def readable(stack):
    """All that a stack will be, as JSON; the SQL for the primary by itself."""
    resources, outputs = copy.deepcopy(stack.resources), dict(stack.outputs)
    for resource in resources.values():
        # For SAM itself, which `sam package` adds to.
        resource.pop("Metadata", None)
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
