// A monitoring mixin: the rules and the dashboards, made yours by `_config`. It needs no library, and any jsonnet from 0.18
// (Debian 12) on. See "The mixin" in alerts/README.md.
//
// What is rendered with the defaults is what alerts/audit-*.yml and dashboards/*.json hold; tests/alerts keeps it so.
// Those files are the place to read and to change: comments and reasons are there. Here they are only transformed.
local lib = import 'mixin/lib.libsonnet';

local ruleFiles = [
  importstr 'alerts/audit-activity.yml',
  importstr 'alerts/audit-backlog.yml',
  importstr 'alerts/audit-integrity.yml',
  importstr 'alerts/audit-recording.yml',
  importstr 'alerts/audit-thresholds.yml',
  importstr 'alerts/audit-watch.yml',
];
local groups = std.flatMap(lib.ruleGroups, ruleFiles);
local thresholds = lib.thresholds(groups);

{
  _config+:: {
    // Which series are those of the exporter: matchers that each metric of it is given in rules and dashboards.
    // For example: job="audit-exporter", namespace="security"
    auditExporterSelector: '',

    // Labels that survive in the rules beside those they have already (job, source, …), where the series have them.
    aggregationLabels: [],
    // The label that tells clusters apart, in rules and dashboards.
    clusterLabel: 'cluster',
    // A choice of the cluster on each dashboard.
    showMultiCluster: false,

    // Name → number, as in alerts/audit-thresholds.yml, for example { failed_logins_15m: 40 }. Where the file has one line for some
    // sources, its selector is in the name: 'stale_seconds{system="index_exchange"}'.
    thresholds: thresholds,
    // The same for one source: { failed_logins_15m: { campus: 200 } }
    sourceThresholds: {},

    // Where Grafana is reached; empty: links begin at its root (/d/…).
    grafanaUrl: '',
    // The runbook of an alert, %s being its name, for example https://wiki.example.com/audit/%s. Empty: the exporter's own, at
    // the address that the exporter tells (--web.external-url).
    runbookUrl: '',
    // The status page of the exporter. Empty: at the address that the exporter tells.
    statusUrl: '',

    dashboardTags: ['audit-exporter'],
  },

  local config = assert lib.check(self._config, thresholds); lib.freeze(self._config),
  // a dashboard is large: not looked at where there is nothing to do
  local untouched = config.auditExporterSelector == '' && !config.showMultiCluster && config.runbookUrl == '' && config.dashboardTags == ['audit-exporter'],
  local mine = std.map(function(group) lib.group(group, config), groups),

  prometheusAlerts+:: { groups+: [group for group in mine if lib.hasAlerts(group)] },
  prometheusRules+:: { groups+: [group for group in mine if !lib.hasAlerts(group)] },

  grafanaDashboards+:: {
    [board.name]: if untouched then board.json else lib.dashboard(board.json, config)
    for board in [
      { name: 'audit-overview.json', json: import 'dashboards/audit-overview.json' },
      { name: 'audit-source.json', json: import 'dashboards/audit-source.json' },
      { name: 'audit-exporter-health.json', json: import 'dashboards/audit-exporter-health.json' },
      { name: 'audit-feeds.json', json: import 'dashboards/audit-feeds.json' },
    ]
  },
}
