//! The JSON Schema of the config file, made of the same lists of keys that the parser reads by: what editors complete and
//! check while somebody writes. It is `docs/config.schema.json`.
//!
//! Promises: whatever the parser accepts is valid. Not all that is valid is accepted: what hangs together, and what stands in
//! files, only the parser sees.

use serde_json::{Map, Value, json};

use super::{Absent, Common, Key, Kind, SYSTEMS, System, TOP, Zero, common, keys_of};

/// The schema of the file.
pub fn schema() -> Value {
    let mut file = mapping(TOP, None);
    // what is the same for all is said once
    let is_shared = |key: &&Key| key.absent != Absent::Usual && key.name != common::PAGE_SIZE;
    let shared: Vec<Key> = common::KEYS.iter().filter(is_shared).copied().collect();
    let shared = mapping(&shared, None)["properties"].take();
    let list = |system: &&System| {
        let mut entry = mapping(&keys_of(system), Some(&(system.defaults)()));
        for name in shared.as_object().into_iter().flat_map(Map::keys) {
            entry["properties"][name] = json!({"$ref": format!("#/$defs/{name}")});
        }
        (system.name.as_str().to_owned(), json!({"type": ["array", "null"], "items": entry}))
    };
    let lists: Map<String, Value> = SYSTEMS.iter().map(list).collect();
    file["properties"]["sources"]["properties"] = Value::Object(lists);
    file["$defs"] = shared;
    file["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    file["title"] = json!("audit-exporter");
    file
}

/// A mapping with these keys and no others; `usual`: what those are that are not given.
fn mapping(keys: &[Key], usual: Option<&Common>) -> Value {
    let usual: Vec<_> = usual.into_iter().flat_map(Common::shown).collect();
    let mut properties = Map::new();
    let (mut needed, mut either) = (Vec::new(), Vec::new());
    for key in keys {
        let mut value = value_of(key.kind);
        value["description"] = json!(key.says);
        let default = match key.absent {
            Absent::Is(default) => Some(default),
            Absent::Usual if matches!(key.kind, Kind::Section(_)) => None,
            Absent::Usual => usual.iter().find(|(name, _)| *name == key.name).map(|(_, value)| value.as_str()),
            Absent::Refused | Absent::Nothing | Absent::Means(_) => None,
        };
        if let Some(default) = default {
            value["default"] = match key.kind {
                Kind::Flag => json!(default == "true"),
                Kind::Count { .. } => default.parse::<u32>().map_or(Value::Null, Value::from),
                _ => json!(default),
            };
        }
        properties.insert(key.name.to_owned(), value);
        let file = format!("{}_file", key.name);
        if let Kind::Secret(_) = key.kind {
            let says = format!("{} In a file.", key.says);
            properties.insert(file.clone(), json!({"type": "string", "description": says}));
        }
        match (key.absent, key.kind) {
            (Absent::Refused, Kind::Secret(_)) => {
                either.push(json!({"oneOf": [{"required": [key.name]}, {"required": [file]}]}));
            }
            (Absent::Refused, _) => needed.push(key.name),
            _ => {}
        }
    }
    let mut mapping = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !needed.is_empty() {
        mapping["required"] = json!(needed);
    }
    if !either.is_empty() {
        mapping["allOf"] = Value::Array(either);
    }
    mapping
}

fn value_of(kind: Kind) -> Value {
    match kind {
        // an id is what is written
        Kind::Text | Kind::Secret(_) => json!({"type": ["string", "number", "boolean"]}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Count { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Bytes => json!({"type": ["integer", "string"]}),
        Kind::Duration(Zero::Accepted) => json!({"anyOf": [{"type": "string"}, {"const": 0}]}),
        Kind::Path | Kind::Url | Kind::ProxyUrl | Kind::Duration(Zero::Refused) => json!({"type": "string"}),
        Kind::Texts => {
            json!({"type": ["array", "null"], "items": {"type": ["string", "number", "boolean"]}, "uniqueItems": true})
        }
        Kind::Section(keys) => {
            let mut section = mapping(keys, None);
            section["type"] = json!(["object", "null"]);
            section
        }
        Kind::Sections(keys) => json!({"type": ["array", "null"], "items": mapping(keys, None)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tree::{self, Node, Value as Yaml};

    const WRITTEN: &str = include_str!("../../docs/config.schema.json");
    const EXAMPLE: &str = include_str!("../../docs/example.yml");

    #[test]
    fn the_schema_in_the_docs_is_the_one_of_the_keys() {
        let made = format!("{:#}\n", schema());
        if std::env::var_os("AUDIT_EXPORTER_WRITE_DOCS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json"), &made).unwrap();
            return;
        }
        assert!(
            made == WRITTEN,
            "docs/config.schema.json is of other keys: run this test with AUDIT_EXPORTER_WRITE_DOCS=1"
        );
    }

    /// Whether a value is one of the schema's, as far as this schema says anything.
    fn check(node: &Node, schema: &Value, whole: &Value, place: &str) {
        let shared = schema["$ref"].as_str().and_then(|place| whole.pointer(place.trim_start_matches('#')));
        let schema = shared.unwrap_or(schema);
        match &node.value {
            Yaml::Map(entries) => {
                for (key, value) in entries {
                    let place = format!("{place}.{}", key.text);
                    let known = &schema["properties"][key.text.as_str()];
                    assert!(known.is_object(), "{place} is not in the schema");
                    check(value, known, whole, &place);
                }
                let is_given = |name: &Value| entries.iter().any(|(key, _)| *name == key.text.as_str());
                for needed in schema["required"].as_array().into_iter().flatten() {
                    assert!(is_given(needed), "{place} has no {needed}");
                }
                for either in schema["allOf"].as_array().into_iter().flatten() {
                    let one = ["/oneOf/0/required/0", "/oneOf/1/required/0"].map(|place| either.pointer(place));
                    assert!(one.into_iter().flatten().any(is_given), "{place} has none of {either}");
                }
            }
            Yaml::List(items) => {
                assert!(schema["items"].is_object(), "{place} is a list");
                for item in items {
                    check(item, &schema["items"], whole, place);
                }
            }
            Yaml::Scalar { .. } => assert!(schema["properties"].is_null() && schema["items"].is_null(), "{place}"),
            Yaml::Null => {}
        }
    }

    #[test]
    fn the_shipped_example_is_one_of_the_schema_its_commented_keys_included() {
        let uncommented: Vec<String> = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("      # ").map_or(line.to_owned(), |key| format!("      {key}")))
            .filter(|line| !line.contains("      The keys"))
            .collect();
        for text in [EXAMPLE.to_owned(), uncommented.join("\n")] {
            let mut problems = Vec::new();
            let root = tree::read(&text, &mut problems).unwrap();
            check(&root, &schema(), &schema(), "");
        }
    }
}
