// What mixin.libsonnet does to the plain files.
//
// Text is looked at by its characters, because jsonnet has no patterns; and the rule files are read here, because the
// std.parseYaml of jsonnet 0.18 (Debian 12) cannot read texts of several lines.

// jsonnet works out a field again each time it is looked at; so what is looked at often is made plain data.
local freeze(value) = std.parseJson(std.toString(value));

// What std has for these is too slow in jsonnet 0.18, which looks at a text by copying it a character at a time.
local startsWith(text, what) = std.length(text) >= std.length(what) && std.substr(text, 0, std.length(what)) == what;
local from(text, start) = std.substr(text, start, std.length(text));
local split(text, what) = std.split(std.strReplace(text, what, '\u0001'), '\u0001');
// At the first `what` only.
local halve(text, what) =
  local parts = split(text, what);
  if std.length(parts) == 1 then parts else [parts[0], from(text, std.length(parts[0]) + std.length(what))];
local contains(text, what) = std.length(split(text, what)) > 1;
// A line without the spaces around it, and how many were before it.
local trim(line) =
  local words = std.split(line, ' ');
  local filled = [i for i in std.range(0, std.length(words) - 1) if words[i] != ''];
  if filled == [] then { indent: std.length(line), text: '' }
  else { indent: filled[0], text: std.join(' ', [words[i] for i in std.range(filled[0], filled[std.length(filled) - 1])]) };
local strip(text) = trim(text).text;

// === YAML, as much of it as rule files use: maps, lists, strings on one line or as | and > blocks, {} and [], comments ===

local scalar(text) =
  if startsWith(text, '"') then std.parseJson(text)
  else if startsWith(text, "'") then std.strReplace(std.substr(text, 1, std.length(text) - 2), "''", "'")
  // {step: "1", kind: deletions} and [a, b], as long as no text in them has a comma or a colon
  else if text[0] == '{' then
    { [strip(halve(one, ':')[0])]: scalar(strip(halve(one, ':')[1])) for one in split(std.substr(text, 1, std.length(text) - 2), ',') if strip(one) != '' }
  else if text[0] == '[' then
    [scalar(strip(one)) for one in split(std.substr(text, 1, std.length(text) - 2), ',') if strip(one) != '']
  else if std.member(['&', '*', '!'], text[0]) then error 'mixin: this YAML is too clever: ' + text
  else if text == 'true' || text == 'false' then text == 'true'
  else if std.length([c for c in std.stringChars(text) if c < '0' || c > '9']) == 0 then std.parseInt(text)
  else text;

local parseYaml(yaml) =
  local lines = split(yaml, '\n');
  local trimmed = [freeze(trim(line)) for line in lines];
  local indents = [one.indent for one in trimmed];
  local texts = [one.text for one in trimmed];
  local used = std.map(function(text) text != '' && text[0] != '#', texts);

  // A | or > block after line `at`: its lines as far as they are indented deeper than the key.
  local block(style, at, to) =
    local filled = [i for i in std.range(at + 1, to) if texts[i] != ''];
    local first = indents[filled[0]];
    local ends = [i for i in filled if indents[i] < first] + [to + 1];
    local last = std.foldl(function(last, i) if i < ends[0] then i else last, filled, 0);
    local body = [if texts[i] == '' then '' else std.join('', std.makeArray(indents[i] - first, function(_) ' ')) + texts[i] for i in std.range(at + 1, last)];
    assert std.length([line for line in body if style[0] == '>' && (line == '' || line[0] == ' ')]) == 0 : 'mixin: a > block with paragraphs: ' + std.join('\n', body);
    std.join(if style[0] == '>' then ' ' else '\n', body) + (if std.length(style) > 1 then '' else '\n');

  // Lines `begin` to `to`; the first is indented by `base`, where "- " counts as spaces.
  local parse(begin, to, base, dash) =
    local starts = [i for i in std.range(begin, to) if i == begin && dash || used[i] && indents[i] == base && !(dash && i == begin)];
    local end(n) = if n + 1 < std.length(starts) then starts[n + 1] - 1 else to;
    local below(at, to) =
      local found = [i for i in std.range(at + 1, to) if used[i]];
      parse(found[0], to, indents[found[0]], false);
    local textOf(i) = if dash && i == begin then from(texts[i], 2) else texts[i];
    if !dash && startsWith(texts[begin], '- ') then
      [parse(starts[n], end(n), base + 2, true) for n in std.range(0, std.length(starts) - 1)]
    else
      local pair(n) =
        local at = starts[n];
        local halves = halve(textOf(at), ':');
        local text = strip(halves[1]);
        [
          halves[0],
          if text == '' then below(at, end(n))
          else if std.member(['|', '|-', '>', '>-'], text) then block(text, at, end(n))
          else
            assert std.length([i for i in std.range(at + 1, end(n)) if used[i]]) == 0 : 'mixin: a text of several lines without | or >: ' + lines[at];
            scalar(if startsWith(text, '"') || startsWith(text, "'") then text else strip(halve(text, ' #')[0])),
        ];
      local pairs = [pair(n) for n in std.range(0, std.length(starts) - 1)];
      { [one[0]]: one[1] for one in pairs };
  local first = [i for i in std.range(0, std.length(lines) - 1) if used[i]][0];
  parse(first, std.length(lines) - 1, indents[first], false);

// === PromQL ===

local isIdentifier(c) = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == ':';
local leadingIdentifier(text) =
  local ends = [i for i in std.range(0, std.min(std.length(text), 120) - 1) if !isIdentifier(text[i])];
  std.substr(text, 0, if ends == [] then std.length(text) else ends[0]);

// `text` with `matchers` added to each metric whose name holds `mark`. `whole`: the name is the mark and nothing else.
// `recorded`: recorded series, too (their names have a colon). `quoted`: a query may begin after a quote.
local add(text, mark, whole, matchers, recorded, quoted) =
  local pieces = split(text, mark);
  local piece(i) =
    local before = pieces[i - 1];
    local previous = if before == '' then ' ' else before[std.length(before) - 1];
    local rest = leadingIdentifier(pieces[i]);
    local after = from(pieces[i], std.length(rest));
    local isName =
      (!whole || rest == '')
      && (!isIdentifier(previous) || recorded && previous == ':')
      && (recorded || !contains(rest, ':'))
      && (quoted || !std.member(['"', "'"], previous))
      // the name goes on
      && !(after == '' && i + 1 < std.length(pieces));
    mark + rest + (
      if !isName then after
      else if startsWith(after, '{}') then '{' + matchers + from(after, 1)
      else if startsWith(after, '{') then '{' + matchers + ', ' + from(after, 1)
      else '{' + matchers + '}' + after
    );
  std.join('', [pieces[0]] + [piece(i) for i in std.range(1, std.length(pieces) - 1)]);

local scraped = [['audit_', false], ['process_', false], ['up', true]];
local everything = scraped + [['ALERTS', true], ['ALERTS_FOR_STATE', true]];

// All that is scraped from the exporter, or all that there is.
local select(expr, matchers, marks=scraped, recorded=false, quoted=false) =
  if matchers == '' then expr
  else std.foldl(function(text, mark) add(text, mark[0], mark[1], matchers, recorded, quoted), marks, expr);

// Queries inside a text with {{ actions }}.
local selectInTemplate(text, matchers) =
  if matchers == '' then text
  else
    local pieces = split(text, '{{');
    local quoted = std.strReplace(std.strReplace(matchers, '\\', '\\\\'), '"', '\\"');
    // printf reads each %
    local formatted = std.strReplace(quoted, '%', '%%');
    local piece(text) =
      local parts = halve(text, '}}');
      local raw = contains(parts[0], '`');
      std.join('}}', [select(parts[0], if raw then matchers else if contains(parts[0], 'printf "') then formatted else quoted, quoted=true)] + parts[1:]);
    std.join('{{', [pieces[0]] + std.map(piece, pieces[1:]));

// The labels of each `by (job, …)` and `on (job, …)`.
local regroup(expr, config) =
  local lists(text, word) =
    local pieces = split(text, word + ' (');
    local piece(i) =
      local before = pieces[i - 1];
      local parts = halve(pieces[i], ')');
      local labels = [if label == 'cluster' then config.clusterLabel else label for label in std.map(strip, split(parts[0], ','))];
      local more = [label for label in config.aggregationLabels if !std.member(labels, label)];
      if before != '' && isIdentifier(before[std.length(before) - 1]) || labels[0] != 'job' then pieces[i]
      else std.join(', ', ['job'] + more + labels[1:]) + ')' + parts[1];
    std.join(word + ' (', [pieces[0]] + [piece(i) for i in std.range(1, std.length(pieces) - 1)]);
  if config.aggregationLabels == [] && config.clusterLabel == 'cluster' then expr
  else lists(lists(expr, 'by'), 'on');

// === thresholds: lines of `0 * series{…} + number`, joined by `or` ===

local infix = ':audit_threshold:';
// Others of the name are made of thresholds.
local isThreshold(rule) = std.objectHas(rule, 'record') && contains(rule.record, infix) && (startsWith(rule.expr, '0 * ') || startsWith(rule.expr, '(0 * '));
local thresholdName(rule) = split(rule.record, infix)[1];

// Each line: { before, number, after, key }
local thresholdLines(rule) =
  local lines = [line for line in split(rule.expr, '\n') if strip(line) != ''];
  [
    local sides = split(line, ' + ');
    assert std.length(sides) > 1 : 'mixin: ' + rule.record + ' is not written as `0 * series + number` on each line';
    local tail = sides[std.length(sides) - 1];
    local before = std.substr(line, 0, std.length(line) - std.length(tail));
    local number = strip(split(tail, ')')[0]);
    local selector = halve(before, '{');
    {
      before: before,
      number: number,
      after: from(tail, std.length(number)),
      key: thresholdName(rule) + (
        if std.length(lines) > 1 && std.length(selector) > 1 then '{' + halve(selector[1], '}')[0] + '}' else ''
      ),
    }
    for line in lines
  ];

local threshold(rule, config) =
  local lines = thresholdLines(rule);
  local name = thresholdName(rule);
  local text(line) = line.before + config.thresholds[line.key] + line.after;
  local own = std.get(config.sourceThresholds, name, {});
  local sources = std.objectFields(own);
  rule {
    expr:
      if sources == [] then std.join('\n', std.map(text, lines)) + (if rule.expr[std.length(rule.expr) - 1] == '\n' then '\n' else '')
      else
        local series = halve(halve(lines[0].before, '0 * ')[1], '{')[0];
        local name = halve(series, ' ')[0];
        std.join('\nor ', ['(0 * %s{source="%s"} + %s)' % [name, source, std.toString(own[source])] for source in sources] + [
          local line = strip(text(one));
          local bare = if startsWith(line, 'or ') then from(line, 3) else line;
          if startsWith(bare, '(') then bare else '(' + bare + ')'
          for one in lines
        ]) + '\n',
  };

local has(object, key) = std.objectHas(object, key);

{
  ruleGroups(text):: freeze(parseYaml(text)).groups,

  freeze:: freeze,

  hasAlerts(group):: std.length([rule for rule in group.rules if has(rule, 'alert')]) > 0,

  // What Grafana makes the address of a runbook of: the address of the exporter is in a variable.
  runbookLink:: '${runbooks:raw}/runbooks/${__data.fields.Alert}',

  thresholds(groups)::
    local lines = std.flatMap(function(group) std.flatMap(thresholdLines, std.filter(isThreshold, group.rules)), groups);
    freeze({ [line.key]: line.number for line in lines }),

  // `known`: the thresholds there are
  check(config, known)::
    local names = std.set([halve(key, '{')[0] for key in std.objectFields(known)]);
    local strange = [key for key in std.objectFields(config.thresholds) if !has(known, key)]
                    + [key for key in std.objectFields(config.sourceThresholds) if !std.member(names, key)];
    assert strange == [] : '_config: there is no threshold ' + std.join(', ', strange);
    true,

  group(group, config):: group {
    rules: [
      local changed = (if isThreshold(rule) then threshold(rule, config) else rule);
      changed {
        expr: regroup(select(changed.expr, config.auditExporterSelector), config),
        [if has(rule, 'annotations') then 'annotations']: {
          [name]:
            local text = selectInTemplate(rule.annotations[name], config.auditExporterSelector);
            if name == 'runbook_url' && config.runbookUrl != '' then $.runbook(rule.annotations[name], config)
            else if name == 'status_url' && config.statusUrl != '' then config.statusUrl
            else if name == 'dashboard_url' && startsWith(text, '/') then config.grafanaUrl + text
            else text
          for name in std.objectFields(rule.annotations)
        },
      }
      for rule in group.rules
    ],
  },

  // The address in `runbookUrl` for a text that ends with /runbooks/NAME or /runbooks/NAME#PLACE.
  runbook(text, config)::
    local tail = halve(halve(text, '/runbooks/')[1], '#');
    local theirs = split(config.runbookUrl, '%s');
    std.join(tail[0], theirs) + (if std.length(tail) == 2 then '#' + tail[1] else ''),

  dashboard(board, config)::
    local runbook(text) = if config.runbookUrl != '' && text == $.runbookLink then $.runbook(text, config) else text;
    local cluster = '%s=~"$cluster"' % config.clusterLabel;
    local query(text) =
      local selected = select(text, config.auditExporterSelector);
      if config.showMultiCluster then select(selected, cluster, everything, recorded=true) else selected;
    local walk(value) =
      if std.isObject(value) then {
        [key]:
          if std.isString(value[key]) then (if std.member(['expr', 'query', 'definition'], key) then query(value[key]) else runbook(value[key]))
          else if key == 'tags' && value[key] == ['audit-exporter'] then config.dashboardTags
          else walk(value[key])
        for key in std.objectFields(value)
      }
      else if std.isArray(value) then std.map(walk, value)
      else if std.isString(value) then runbook(value)
      else value;
    local variables = board.templating.list;
    local job = [one for one in variables if one.name == 'job'][0];
    local choice =
      local asked = 'label_values(audit_source_up, %s)' % config.clusterLabel;
      job {
        name: 'cluster',
        label: 'Cluster',
        definition: asked,
        query: if std.isString(job.query) then asked else job.query { query: asked },
      };
    local changed = walk(board);
    if !config.showMultiCluster then changed
    else changed {
      templating+: {
        list: [changed.templating.list[0], choice] + changed.templating.list[1:],
      },
    },
}
