//! A headless Chromium, controlled by the
//! [WebDriver](https://www.w3.org/TR/webdriver2/) protocol, which is JSON over HTTP.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::{cluster::free_port, eventually, http};

/// A browser with an empty profile. It ends when it is dropped, and when the process of the tests
/// ends.
pub struct Browser {
    /// The address of the driver.
    address: String,
    session: String,
    driver: Child,
    supervisor: Child,
    /// Closed by `drop`, or by the operating system when this process ends.
    lifeline: Option<ChildStdin>,
}

impl Browser {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let port = free_port().unwrap();
        let mut driver = Command::new(find(&["chromedriver"]));
        driver.arg(format!("--port={port}")).env("HOME", &folder).process_group(0);
        driver.stdout(Stdio::null()).stderr(Stdio::null());
        let driver = driver.spawn().unwrap();
        // The browser is in the driver's process group, and would outlive the driver.
        let script = r#"trap '' PIPE; read -r _; kill -s KILL -- "-$1"; rm -rf "$2""#;
        let mut supervisor = Command::new("/bin/sh");
        supervisor.args(["-c", script, "sh"]).arg(driver.id().to_string()).arg(&folder);
        supervisor.stdin(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut supervisor = supervisor.spawn().unwrap();
        let lifeline = supervisor.stdin.take();
        let address = format!("127.0.0.1:{port}");
        let mut browser = Self { address, session: String::new(), driver, supervisor, lifeline };
        eventually("the driver listens", async || {
            tokio::net::TcpStream::connect(&browser.address).await.is_ok()
        })
        .await;
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": find(&["chromium", "google-chrome"]), "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", format!("--user-data-dir={}", folder.join("profile").display()),
            ]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.command("POST", "/session", capabilities).await;
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// Opens an address. Resolves when the page is loaded.
    pub async fn go(&self, url: &str) {
        self.tell("/url", json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page. Returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.tell("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Runs the body of a function repeatedly, until it returns true.
    pub async fn until(&self, script: &str) {
        eventually(script, async || {
            // Leave time for the page.
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.run(script).await == true
        })
        .await;
    }

    /// Clicks on an element with the pointer, after scrolling it into view.
    pub async fn click(&self, selector: &str) {
        let found =
            self.tell("/element", json!({"using": "css selector", "value": selector})).await;
        let id = found.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        self.tell(&format!("/element/{id}/click"), json!({})).await;
    }

    /// Presses and releases one key after another. The focused element receives them.
    pub async fn keys(&self, keys: &str) {
        let strokes: Vec<_> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.tell("/actions", actions).await;
    }

    /// Runs a command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.tell("/goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// Returns the entries since the last call. `browser`: the console. `performance`: DevTools.
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        let Value::Array(entries) = self.tell("/se/log", json!({ "type": kind })).await else {
            panic!("no log");
        };
        entries
    }

    /// Returns every requested address since the last call.
    pub async fn requests(&self) -> Vec<String> {
        let events = self.log("performance").await.into_iter().map(|entry| {
            let event = serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap();
            event["message"].clone()
        });
        let sent = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// Opens a new tab and makes it current.
    pub async fn new_tab(&self) {
        let tab = self.tell("/window/new", json!({"type": "tab"})).await;
        self.tell("/window", json!({ "handle": tab["handle"] })).await;
    }

    /// Closes the current tab, and makes the first of the others current.
    pub async fn close_tab(&self) {
        let left = self.command("DELETE", &format!("{}/window", self.session), Value::Null).await;
        self.tell("/window", json!({ "handle": left[0] })).await;
    }

    async fn tell(&self, command: &str, parameters: Value) -> Value {
        self.command("POST", &format!("{}{command}", self.session), parameters).await
    }

    async fn command(&self, method: &str, path: &str, parameters: Value) -> Value {
        let body = match parameters {
            Value::Null => String::new(),
            parameters => parameters.to_string(),
        };
        let answer = http::send(&self.address, method, path, &body);
        let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {path} {body}"));
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        serde_json::from_slice::<Value>(&answer.body).unwrap()["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.supervisor.wait();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Returns the first of the programs that exists.
fn find(programs: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/bin", "/opt/homebrew/bin", "/usr/local/bin"].map(PathBuf::from));
    let places = programs.iter().flat_map(|name| folders.iter().map(move |f| f.join(name)));
    places.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{} was not found: run scripts/test.sh, which installs it", programs[0])
    })
}
