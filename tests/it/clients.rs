//! Peers we did not write: clients of the services against our simulator, so that it does not
//! share a misunderstanding with our sources, and a certified token server before our source.

use std::process::Command;

use audit_exporter::simulate::credentials as c;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::program::{EAGER, PATIENCE, Process, Running, config_file, eventually, in_repository, python, tool};

/// Runs a client from `tests/clients`, which compares what it reads with the simulator's truth.
fn reads_the_truth(script: &str, arguments: &[&str]) {
    let Some(python) = python() else { return };
    let simulator = Running::simulator(&["--rate=0.1"]);
    simulator.post("/simulator/silence", "");
    let origin = format!("http://{}", simulator.address);
    let said = Command::new(python)
        .arg(in_repository("tests/clients").join(script))
        .arg(&origin)
        .args(arguments)
        .output()
        .unwrap();
    let (printed, complained) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{script}: {printed}{complained}");
    let read: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert!(read["equal"] == true && read["total"].as_u64().unwrap() > 100, "{read}");
}

#[test]
fn losant_s_own_client_reads_what_the_simulator_says_is_true() {
    reads_the_truth("losant_client.py", &[c::LOSANT_INSTANCE_ID, c::LOSANT_API_TOKEN]);
}

#[test]
fn a_canvas_client_reads_what_the_simulator_says_is_true() {
    reads_the_truth("canvas_client.py", &[&c::CANVAS_ACCOUNT.to_string(), c::CANVAS_ACCESS_TOKEN]);
}

/// The key as Index Exchange issues it: each half form-encoded (RFC 6749, 2.3.1), then base64.
#[test]
fn a_certified_token_server_lets_the_index_exchange_source_in() {
    let Some(node) = tool("AUDIT_EXPORTER_NODE", "node") else { return };
    let Some(package) = tool("AUDIT_EXPORTER_OIDC_PROVIDER", "oidc-provider of tests/clients/package.json") else {
        return;
    };
    let modules = package.parent().and_then(|folder| folder.parent()).unwrap();
    let mut token_server = Process::start(
        Command::new(node)
            .arg(in_repository("tests/clients/oidc-server.mjs"))
            .args(["event:log", "s3:cr+t%w/rd"])
            .env("AUDIT_EXPORTER_NODE_MODULES", modules),
    );
    let token_origin = token_server.until_printed("its address", |printed| {
        let address = printed.lines().find_map(|line| line.strip_prefix("listening on "))?;
        Some(address.to_owned())
    });
    let simulator = Running::simulator(&["--rate=0.1", "--fault=index_exchange:accept_any_token"]);
    simulator.post("/simulator/silence", "");
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), &simulator, "0s", EAGER);
    let text = std::fs::read_to_string(&config).unwrap();
    let issued = STANDARD.encode("event%3Alog:s3%3Acr%2Bt%25w%2Frd");
    let elsewhere = text
        .replace(
            &format!("token_url: http://{}/auth/realms", simulator.address),
            &format!("token_url: {token_origin}/auth/realms"),
        )
        .replace(c::INDEX_EXCHANGE_CLIENT_KEY, &issued);
    assert!(elsewhere.contains(&token_origin) && elsewhere.contains(&issued));
    std::fs::write(&config, elsewhere).unwrap();
    let exporter = Running::exporter(&config, &[]);
    let rows = |page: &crate::exposed::Exposed| page.sum("audit_events_total", &["system=\"index_exchange\""]);
    eventually(PATIENCE, || {
        let happened = simulator.get("/simulator/truth").json()["totals"]["index_exchange"].as_f64().unwrap();
        let counted = rows(&exporter.scrape());
        if happened > 0.0 && counted == happened {
            return Ok(());
        }
        Err(format!("{happened} rows, {counted} are counted; the token server:\n{}", token_server.printed()))
    });
    let asked: Vec<String> =
        token_server.printed().lines().filter(|line| line.starts_with("token ")).map(str::to_owned).collect();
    assert_eq!(asked, ["token 200"], "one token is enough for an hour");
    assert_eq!(exporter.scrape().sum("audit_source_errors_total", &["system=\"index_exchange\""]), 0.0);
    let requests = simulator.get("/simulator/requests").json();
    assert_eq!(requests["index_exchange"]["logins"], 0, "the simulator's own token server was not asked");
}
