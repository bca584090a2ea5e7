// A monitoring mixin: the dashboards and the rules, from the same files, under the names that mixins use.
//
//   jsonnet -m OUT -c -e '(import "mixin.libsonnet").grafanaDashboards'
//   jsonnet -S -e 'std.manifestYamlDoc((import "mixin.libsonnet").prometheusAlerts)'
//
// It needs no library. The rules need a newer jsonnet than 0.20 (0.22 was tried): the std.parseYaml of older ones, as in
// Debian 12, cannot read texts of several lines. The dashboards do with any.
local groups(texts) = std.flatMap(function(text) std.parseYaml(text).groups, texts);
{
  grafanaDashboards+:: {
    'audit-overview.json': import 'dashboards/audit-overview.json',
    'audit-source.json': import 'dashboards/audit-source.json',
    'audit-exporter-health.json': import 'dashboards/audit-exporter-health.json',
    'audit-feeds.json': import 'dashboards/audit-feeds.json',
  },
  prometheusAlerts+:: {
    groups+: groups([
      importstr 'alerts/audit-activity.yml',
      importstr 'alerts/audit-integrity.yml',
      importstr 'alerts/audit-watch.yml',
    ]),
  },
  prometheusRules+:: {
    groups+: groups([
      importstr 'alerts/audit-recording.yml',
      importstr 'alerts/audit-thresholds.yml',
    ]),
  },
}
