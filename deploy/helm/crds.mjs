// Validate objects of custom resources, JSON on standard input, by the models of npm's @kubernetes-models. They check
// types and what is required; they accept unknown fields. Run it by `node --input-type=module` where those are installed.
import { ExternalSecret } from "@kubernetes-models/external-secrets/external-secrets.io/v1/ExternalSecret";
import { GRPCRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/GRPCRoute";
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";

const models = [ExternalSecret, GRPCRoute, HTTPRoute, PrometheusRule, ServiceMonitor];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const model = models.find((model) => model.is(object));
  if (!model) throw new Error(`no model of ${object.apiVersion} ${object.kind}`);
  new model(object).validate();
}
