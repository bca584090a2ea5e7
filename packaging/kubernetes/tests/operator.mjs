// Holds objects of the Prometheus operator against the patterns of its custom resources.
//
//	node operator.mjs < objects.json     a list; prints what is wrong with each, null if nothing
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { readFileSync } from "node:fs";

const problems = JSON.parse(readFileSync(0, "utf8")).map((object) => {
  try {
    new models[object.kind](object).validate();
    return null;
  } catch (error) {
    return String(error.message);
  }
});
console.log(JSON.stringify(problems));
