// node cdk.js TEMPLATE RENDERED: has CDK load the template as `CfnInclude` does for whoever deploys by CDK, and prints the rules of
// cdk-nag that the rendered one breaks, as {"rule": ["what breaks it"]}.
"use strict";

const assert = require("node:assert/strict");

const { App, Aspects, Stack } = require("aws-cdk-lib");
const { CfnInclude } = require("aws-cdk-lib/cloudformation-include");
const { AwsSolutionsChecks, ServerlessChecks } = require("cdk-nag");

function include(templateFile) {
  const app = new App();
  const stack = new Stack(app, "media-usage");
  const template = new CfnInclude(stack, "Template", { templateFile });
  return { app, stack, template };
}

const [templateFile, rendered] = process.argv.slice(2);

const { app, stack, template } = include(templateFile);
// As docs/deploy.md has it.
template.getParameter("SubnetIds").default = "subnet-0aaa,subnet-0bbb";
const made = app.synth().getStackByName(stack.stackName).template;
assert.equal(made.Transform, "AWS::Serverless-2016-10-31");
assert.equal(made.Parameters.SubnetIds.Default, "subnet-0aaa,subnet-0bbb");
assert.deepEqual(made.Resources.DomainMapping.Properties.Stage, { "Fn::Sub": "${Api.Stage}" });

const broken = {};
const logger = {
  onCompliance() {},
  onNotApplicable() {},
  onSuppressed() {},
  onNonCompliance({ ruleId, resource }) {
    (broken[ruleId] ??= []).push(resource.node.path);
  },
  // A rule that cannot be tried is no rule kept.
  onError({ ruleId, resource, errorMessage }) {
    (broken[ruleId] ??= []).push(`${resource.node.path}: ${errorMessage}`);
  },
};
const audited = include(rendered).app;
for (const Pack of [AwsSolutionsChecks, ServerlessChecks]) {
  Aspects.of(audited).add(new Pack({ additionalLoggers: [logger], reports: false }));
}
audited.synth();
console.log(JSON.stringify(broken));
