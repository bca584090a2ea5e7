//! The command line: exit codes, messages, and what must not happen before a mistake is told.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use audit_exporter::simulate::SERVICES;
use redb::{Database, ReadableDatabase, TableDefinition, TableHandle};

use crate::program::{EAGER, Finished, Process, Running, config_file, config_text, finish, program, tool};

fn assert_refused(finished: &Finished, code: i32, says: &str) {
    assert_eq!(finished.code, code, "{}", finished.stderr);
    assert_eq!(finished.stdout, "", "a refusal belongs on standard error");
    assert!(finished.stderr.contains(says), "expected {says:?} in {:?}", finished.stderr);
    assert_eq!(finished.stderr.matches(says).count(), 1, "said once: {:?}", finished.stderr);
}

fn written(folder: &Path, text: &str) -> String {
    let path = folder.join("audit-exporter.yml");
    std::fs::write(&path, text).unwrap();
    // there are secrets in it, which is told of where others can read it
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    format!("--config.file={}", path.display())
}

#[test]
fn help_and_version_are_answered_on_standard_output() {
    let help = finish(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for flag in [
        "--config.file",
        "--web.listen-address",
        "--web.config.file",
        "--web.external-url",
        "--storage.path",
        "--log.level",
        "--log.format",
        "--version",
        "check",
        "verify",
        "doctor",
        "backup",
        "demo",
        "simulate",
        "config",
        "completions",
    ] {
        assert!(help.stdout.contains(flag), "{flag} in {}", help.stdout);
    }
    let version = finish(&["--version"]);
    assert_eq!((version.code, version.stderr.as_str()), (0, ""));
    assert!(version.stdout.contains(concat!("version ", env!("CARGO_PKG_VERSION"))), "{}", version.stdout);
}

#[test]
fn a_wrong_call_is_one_message_and_exit_status_2() {
    assert_refused(&finish(&["--no.such.flag"]), 2, "'--no.such.flag'");
    assert_refused(&finish(&["no-such-command"]), 2, "'no-such-command'");
    assert_refused(&finish(&["--web.listen-address=nowhere"]), 2, "is not a listen address");
    assert_refused(&finish(&["--log.level=loud"]), 2, "'loud'");
    assert_refused(
        &finish(&["--web.external-url=audit.example.com:443"]),
        2,
        "does not begin with http:// or https://",
    );
    assert_refused(&finish(&["demo", "--web.external-url="]), 2, "--web.external-url");
    assert_refused(&finish(&[]), 2, "no configuration");
    assert_refused(&finish(&["check"]), 2, "no configuration");
    assert_refused(&finish(&["--config.file=/nowhere/at.yml"]), 2, "/nowhere/at.yml:1:1: ");
    assert_refused(&finish(&["simulate", "--listen=127.0.0.1:0", "--fault=mail:down"]), 2, "mail");
}

#[test]
fn check_accepts_a_good_file_and_makes_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &config_text("http://127.0.0.1:1", folder.path(), "1s", EAGER));
    for call in [&["check", file.as_str()], &[file.as_str(), "check"]] {
        let checked = finish(call);
        assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    }
    assert!(!folder.path().join("data").exists());
}

#[test]
fn check_without_secrets_needs_nothing_of_the_machine_that_the_configuration_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let text = "\
storage: {path: /proc/nowhere}
sources:
  losant:
    - name: iot
      instance_id: 575ec7417ae143cd83dc4a96
      api_token_file: secrets/losant.token
      proxy_url: http://proxy.example.com:3128
      tls: {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}
";
    let file = written(folder.path(), text);
    let web = folder.path().join("web.yml");
    std::fs::write(&web, "tls_server_config: {cert_file: server.crt, key_file: server.key}\n").unwrap();
    let web = format!("--web.config.file={}", web.display());
    let check = |more: &[&str]| finish(&[&["check", &file, &web], more].concat());
    let refused = check(&[]);
    assert!(refused.code == 2, "{}", refused.stderr);
    let good = || {
        let checked = check(&["--without-secrets"]);
        assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
        assert_eq!(checked.stdout, "the configuration is good; files with secrets were not looked at\n");
    };
    good();
    // what stands in the place of a secret may be encrypted
    std::fs::create_dir(folder.path().join("secrets")).unwrap();
    for encrypted in ["secrets/losant.token", "client.key", "server.key"] {
        std::fs::write(folder.path().join(encrypted), [0, 255, 10]).unwrap();
    }
    good();
    // everything else is checked
    std::fs::write(folder.path().join("ca.pem"), "no certificate").unwrap();
    assert_refused(&check(&["--without-secrets"]), 2, "`ca_file`");
    std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
    written(folder.path(), &text.replace("api_token_file:", "api_tokn_file:"));
    assert_refused(&check(&["--without-secrets"]), 2, "did you mean `api_token_file`?");
    written(folder.path(), &text.replace("secrets/losant.token", "\"\""));
    assert_refused(&check(&["--without-secrets"]), 2, "`api_token_file` is empty");
    written(folder.path(), text);
    std::fs::write(folder.path().join("web.yml"), "basic_auth_users: {prometheus: plain}\n").unwrap();
    assert_refused(&check(&["--without-secrets"]), 2, "bcrypt");
}

/// Seven mistakes; a secret stands in three of them.
const MISTAKES: &str = "\
global:
  poll_interval: 60
  hold_new_serie: 5s
storage:
  path: data
sources:
  losant:
    - name: IoT
      instance_id: 575ec7417ae143cd83dc4a96
      api_token: [hunter2hunter2]
    - name: iot
      base_url: http://losant.example.com
      instance_id: 575ec7417ae143cd83dc4a96
      api_token: hunter2hunter2
      api_token_file: absent.token
    - name: iot
      instance_id: 575ec7417ae143cd83dc4a96
      api_tokn: hunter2hunter2
";

#[test]
fn check_tells_every_problem_with_its_place_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), MISTAKES);
    let checked = finish(&["check", &file]);
    assert_eq!((checked.code, checked.stdout.as_str()), (2, ""));
    let path = file.strip_prefix("--config.file=").unwrap();
    let mut lines = Vec::new();
    for problem in checked.stderr.lines() {
        let place = problem.strip_prefix(&format!("{path}:")).unwrap_or_else(|| panic!("no place in {problem:?}"));
        let [line, column, message] = place.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{problem:?}") };
        lines.push(line.parse::<usize>().unwrap());
        assert!(column.parse::<usize>().unwrap() >= 1 && message.len() > 10, "{problem}");
    }
    for wrong in [2, 3, 8, 10, 12, 15, 16, 18] {
        assert!(lines.contains(&wrong), "line {wrong} in:\n{}", checked.stderr);
    }
    assert!(!checked.stderr.contains("hunter2"), "{}", checked.stderr);
}

#[test]
fn a_bad_file_is_refused_before_anything_is_polled_or_made() {
    let folder = tempfile::tempdir().unwrap();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let origin = format!("http://{}", service.local_addr().unwrap());
    let good = config_text(&origin, folder.path(), "1s", EAGER);
    let file = written(folder.path(), &format!("{good}nonsense: 1\n"));
    let refused = finish(&[&file, "--web.listen-address=127.0.0.1:0"]);
    assert_refused(&refused, 2, "`nonsense`");
    assert!(service.accept().is_err(), "nobody called");
    assert!(!folder.path().join("data").exists());
    // the same of a web configuration file
    let file = written(folder.path(), &good);
    let web = folder.path().join("web.yml");
    std::fs::write(&web, "basic_auth_user: {}\n").unwrap();
    let web = format!("--web.config.file={}", web.display());
    assert_refused(&finish(&[&file, "--web.listen-address=127.0.0.1:0", &web]), 2, "basic_auth_user\"");
    assert_refused(&finish(&["check", &file, &web]), 2, "basic_auth_user\"");
    assert!(service.accept().is_err(), "nobody called");
}

#[test]
fn a_store_in_use_is_refused_and_its_owner_undisturbed() {
    let folder = tempfile::tempdir().unwrap();
    let simulator = Running::simulator(&["--quiet"]);
    let config = config_file(folder.path(), &simulator, "1s", EAGER);
    let mut owner = Running::exporter(&config, &[]);
    let file = format!("--config.file={}", config.display());
    assert_refused(
        &finish(&[&file, "--web.listen-address=127.0.0.1:0", "--log.level=error"]),
        1,
        "in use by another process",
    );
    assert!(owner.process.running());
    assert_eq!(owner.get("/-/healthy").status, 200);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let store = folder.path().join("data/ledger.redb");
    let meta = TableDefinition::<&str, u64>::new("meta");
    {
        let database = Database::create(&store).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(meta).unwrap().insert("schema", 99).unwrap();
        write.commit().unwrap();
    }
    let file = written(folder.path(), &config_text("http://127.0.0.1:1", folder.path(), "1s", EAGER));
    assert_refused(&finish(&[&file, "--web.listen-address=127.0.0.1:0", "--log.level=error"]), 1, "layout 99");
    let database = Database::open(&store).unwrap();
    let read = database.begin_read().unwrap();
    assert_eq!(read.open_table(meta).unwrap().get("schema").unwrap().unwrap().value(), 99);
    let tables: Vec<_> = read.list_tables().unwrap().map(|table| table.name().to_owned()).collect();
    assert_eq!(tables, ["meta"]);
}

/// What a shell says to a script.
fn shell(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_and_fish_complete_subcommands_options_and_their_values() {
    let tools = (tool("AUDIT_EXPORTER_BASH", "bash"), tool("AUDIT_EXPORTER_FISH", "fish"));
    let (Some(bash_program), Some(fish_program)) = tools else { return };
    let folder = tempfile::tempdir().unwrap();
    let scripts = ["bash", "zsh", "fish"].map(|shell| {
        let script = finish(&["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (0, ""));
        let path = folder.path().join(shell);
        std::fs::write(&path, &script.stdout).unwrap();
        (path.display().to_string(), script.stdout)
    });
    let [(bash, _), (_, zsh), (fish, _)] = scripts;
    assert!(zsh.starts_with("#compdef audit-exporter\n"), "{zsh}");
    for (line, completed) in [
        ("che", "check"),
        ("--log.level ", "debug"),
        ("--log.level deb", "debug"),
        ("check --web.conf", "--web.config.file"),
        ("verify --format ", "json"),
        ("config ", "schema"),
    ] {
        let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source {bash}; COMP_WORDS=(audit-exporter {}); COMP_CWORD={}; \
             $(complete -p audit-exporter | grep -o '_audit[a-z_]*') audit-exporter \"${{COMP_WORDS[COMP_CWORD]}}\" \
             \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[*]}}\"",
            words.join(" "),
            words.len()
        );
        let given = shell(&bash_program, &["--norc", "-c", &script]);
        assert!(given.split_whitespace().any(|word| word == completed), "bash, {line:?}: {given}");
        let given =
            shell(&fish_program, &["--no-config", "-c", &format!("source {fish}; complete -C'audit-exporter {line}'")]);
        assert!(given.lines().any(|word| word.split('\t').next() == Some(completed)), "fish, {line:?}: {given}");
    }
    // after an option with a dot the subcommand is still understood
    let given = shell(
        &fish_program,
        &["--no-config", "-c", &format!("source {fish}; complete -C'audit-exporter --log.level=debug che'")],
    );
    assert!(given.contains("check"), "{given}");
}

#[test]
fn the_schema_is_the_one_in_the_docs() {
    let printed = finish(&["config", "schema"]);
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    assert_eq!(printed.stdout, include_str!("../../docs/config.schema.json"));
}

/// What `--help` prints of the program and of each command, as the page has it.
fn helps() -> String {
    let help = |name: &str| {
        let printed = finish(&[name.split_whitespace().collect::<Vec<_>>(), vec!["--help"]].concat());
        assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
        printed.stdout
    };
    let program = help("");
    let commands = program.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut names: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"verify") && names.last() == Some(&"help"), "{program}");
    names.pop();
    let part = |name: &str| {
        let title = format!("audit-exporter {name}");
        let help = help(name);
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        format!("## `{}`\n\n```text\n{}\n```\n", title.trim_end(), lines.join("\n").trim_end())
    };
    let parts: Vec<String> = std::iter::once("").chain(names).chain(["config schema"]).map(part).collect();
    parts.join("\n")
}

#[test]
fn the_page_of_the_command_line_is_what_help_prints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/command-line.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (by_hand, made) = page.split_at(page.find("## `audit-exporter`\n").expect("the heading of the first help"));
    let helps = helps();
    if std::env::var_os("AUDIT_EXPORTER_WRITE_DOCS").is_some() {
        std::fs::write(path, by_hand.to_owned() + &helps).unwrap();
        return;
    }
    assert_eq!(made, helps, "run this test with AUDIT_EXPORTER_WRITE_DOCS=1");
}

#[test]
fn the_demo_s_configuration_can_be_had_without_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let printed = finish(&["demo", "--print-config", "--hold=7s"]);
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    assert!(printed.stdout.starts_with("# the services: audit-exporter simulate --listen="), "{}", printed.stdout);
    assert!(printed.stdout.contains("hold_new_series: 7s"), "{}", printed.stdout);
    let checked = finish(&["check", &written(folder.path(), &printed.stdout)]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    assert_refused(&finish(&["demo", "--print-config", "--hold=soon"]), 2, "expected a time span");
}

#[test]
fn there_is_a_manual_page_for_each_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let made = finish(&["man-pages", &path]);
    assert_eq!((made.code, made.stdout.as_str(), made.stderr.as_str()), (0, "", ""));
    for (page, says) in [
        ("audit-exporter", "config.file"),
        ("audit-exporter-verify", "differences"),
        ("audit-exporter-demo", "simulated"),
    ] {
        let text = std::fs::read_to_string(folder.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".TH ") && text.replace('\\', "").contains(says), "{page}: {text}");
    }
    assert_refused(&finish(&["man-pages", "/nowhere/at/all"]), 1, "/nowhere/at/all");
}

#[test]
fn without_a_name_the_configuration_in_the_working_folder_is_used() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &config_text("http://127.0.0.1:1", folder.path(), "1s", EAGER));
    let check = |folder: &Path| {
        let program = env!("CARGO_BIN_EXE_audit-exporter");
        Command::new(program).arg("check").current_dir(folder).output().unwrap()
    };
    let checked = check(folder.path());
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let elsewhere = tempfile::tempdir().unwrap();
    let checked = check(elsewhere.path());
    assert_eq!(checked.status.code(), Some(2));
    let says = String::from_utf8(checked.stderr).unwrap();
    assert!(says.contains("there is no audit-exporter.yml in this folder"), "{says}");
}

#[test]
fn what_simulate_prints_is_a_configuration_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut simulator = Process::start(&mut program(&["simulate", "--listen=127.0.0.1:0", "--quiet"]));
    let config = simulator.until_printed("a configuration", |printed| {
        let (_, config) = printed.split_once("credentials:\n\n")?;
        (config.ends_with('\n') && config.matches("    - name: ").count() == SERVICES.len()).then(|| config.to_owned())
    });
    let checked = finish(&["check", &written(folder.path(), &config)]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
}
