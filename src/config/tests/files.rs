//! The file as a whole: one without a usable source, one that cannot be read, aliases, and any text at all.

use proptest::prelude::*;

use super::*;

#[test]
fn a_file_without_a_usable_source_is_refused() {
    let not_yaml = "accepted: YAML 1.2, with quotes around values with special characters";
    let names = SYSTEMS.map(|system| system.name.as_str()).join(", ");
    let empty = "1:1: the file is empty; accepted: a mapping with the key `sources`".to_owned();
    let none = format!("1:1: there is no source; accepted: `sources` with at least one in {names}");
    for (text, message) in [
        ("", empty.clone()),
        ("# nothing\n", empty.clone()),
        ("---\n", empty),
        ("storage:\n", none.clone()),
        ("sources:\n", none.clone()),
        ("sources: {canvas: [], losant: }\n", none),
        ("- a\n", "1:1: the file is a list; accepted: a mapping with the keys global, storage, sources".to_owned()),
        ("sources: []\n", format!("1:10: `sources` is a list; accepted: a mapping with the keys {names}")),
        (
            "sources:\n  canvass: []\n",
            format!("2:3: unknown key `canvass` in `sources` (did you mean `canvas`?); accepted: {names}"),
        ),
        (
            "sources:\n  canvas:\n    name: a\n",
            "3:5: `canvas` is a mapping; accepted: a list of sources, each beginning with `- name:`".to_owned(),
        ),
        ("a: 1\n---\nb: 1\n", "2:1: a second YAML document begins here; accepted: one document per file".to_owned()),
        ("a: 'é' b: 1\n", format!("1:8: not YAML: invalid trailing content after single-quoted scalar; {not_yaml}")),
        ("sources: [\n", format!("1:10: not YAML: unclosed bracket '['; {not_yaml}")),
        ("a: *b\n", format!("1:4: not YAML: an alias (`*`) without its anchor (`&`); {not_yaml}")),
        ("a: &a [*a]\n", "1:8: this alias (`*`) is inside its own anchor (`&`); accepted: one after it".to_owned()),
    ] {
        assert_eq!(problems(text), [message], "{text:?}");
    }
}

#[test]
fn aliases_repeat_values_but_cannot_blow_up() {
    let text = "sources:\n  losant:\n    - {name: a, instance_id: x, api_token: t, rate_limit: &slow {requests: 1, per: 1m}}\n    \
                - {name: b, instance_id: x, api_token: t, rate_limit: *slow}\n";
    let config = parsed(text).unwrap();
    assert_eq!(config.sources[0].common.rate_limit, config.sources[1].common.rate_limit);

    let chain = |times: usize| -> String {
        let link = |n: usize| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); times].join(", "));
        std::iter::once(format!("a: &a0 [{}]\n", vec!["x"; times].join(", "))).chain((1..40).map(link)).collect()
    };
    let (bomb, deep) = (chain(10), chain(1));
    assert_eq!(
        problems(&bomb),
        ["5:25: the file has more than 50000 values by here, repetitions through aliases included"]
    );
    assert_eq!(problems(&deep), ["31:12: nested deeper than 32 levels through this alias"]);
    let nested = format!("a: {}", "[".repeat(100_000));
    assert_eq!(problems(&nested).len(), 1);
    assert!(problems(&nested)[0].contains("nested deeper than 32 levels"), "{:?}", problems(&nested));
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let folder = folder();
    let path = folder.path().join("gone.yml");
    let file = path.display();
    assert_eq!(
        load(&path).unwrap_err().to_string(),
        format!(
            "{file}:1:1: the file cannot be read: No such file or directory (os error 2); accepted: a readable YAML file"
        )
    );
    std::fs::write(&path, b"a: 1\n\xc3\xa9: \xff\n").unwrap();
    let expected = format!("{file}:2:4: the file is not text from here on; accepted: UTF-8");
    assert_eq!(load(&path).unwrap_err().to_string(), expected);
    std::fs::write(&path, " ".repeat(1024 * 1024 + 1)).unwrap();
    let expected = format!("{file}:1:1: the file is too large; accepted: up to 1048576 bytes");
    assert_eq!(load(&path).unwrap_err().to_string(), expected);
    std::fs::write(&path, losant("").replace("api_token: hunter2", "api_token_file: losant.token")).unwrap();
    assert_eq!(load(&path).unwrap().storage.path, folder.path().join("data"));
}

/// Pieces from which almost-configs are made.
fn piece() -> impl Strategy<Value = String> {
    let words: Vec<String> = all_keys()
        .iter()
        .flat_map(|(key, _)| key.names())
        .map(|name| format!("{name}: "))
        .chain(
            [
                "\n", "\n  ", "\n    - ", "\n      ", "{", "}", "[", "]", ", ", "- ", "&a ", "*a", "!!str ", "? ",
                "|\n", "'",
            ]
            .map(str::to_owned),
        )
        .chain(
            ["1m", "0", "é", "\"", "#", "---\n", "\t", "https://h", "~", "true", "\u{feff}", "\0", "%"]
                .map(str::to_owned),
        )
        .collect();
    proptest::sample::select(words)
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", pieces in prop::collection::vec(piece(), 0..60)) {
        for text in [text, pieces.concat()] {
            if let Err(errors) = parse(&text, Path::new("c.yml")) {
                prop_assert!(!errors.problems().is_empty());
                for problem in errors.problems() {
                    prop_assert!(problem.line >= 1 && problem.column >= 1);
                    prop_assert!(problem.line <= text.lines().count() + 1);
                    prop_assert!(!problem.message.contains('\n'));
                }
            }
        }
    }
}
