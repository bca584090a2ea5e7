// The dashboards as a monitoring mixin: the same files, under the names that mixins use.
//
//   jsonnet -e '(import "mixin.libsonnet").grafanaDashboards' -m DIR -c
{
  grafanaDashboards+:: {
    'audit-overview.json': import 'dashboards/audit-overview.json',
    'audit-source.json': import 'dashboards/audit-source.json',
    'audit-exporter-health.json': import 'dashboards/audit-exporter-health.json',
    'audit-feeds.json': import 'dashboards/audit-feeds.json',
  },
}
