//! The page of the example `axum`, in a browser: its content, the effect of its buttons on the
//! query, and accessibility.

use std::time::Duration;

use crate::support::{
    admin, eventually,
    proxy::Proxy,
    service::{Service, active, waits_for_client},
    sql,
    webdriver::Browser,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The keys by their code points in the protocol.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const SPACE: &str = " ";

/// Orders without end.
async fn make_orders(view: &str) {
    sql(&format!(
        "create view {view} as
         select jsonb_build_object('id', i, 'placed_at', timestamptz '2026-01-01 08:00+00', 'total', i * 1.25,
             'status', 'paid', 'customer', jsonb_build_object('name', '<b>Ada</b>', 'city', 'Kraków'),
             'tags', '[\"gift\", \"vip\"]'::jsonb) as data
         from (select generate_series(1, 2000000000) i) as numbers"
    ))
    .await;
}

fn url(service: &Service) -> String {
    format!("http://{}/", service.address)
}

const STATE: &str = "return document.body.dataset.state";
/// As a number, without the commas.
const ROWS: &str = "return Number(document.getElementById('rows').textContent.replaceAll(',', ''))";

async fn in_state(browser: &Browser, state: &str) {
    browser.until(&format!("{STATE} === '{state}'")).await;
}

async fn rows(browser: &Browser) -> u64 {
    browser.run(ROWS).await.as_u64().unwrap()
}

/// Checks that the console has no error, and that no other server received a request.
async fn check_console_and_requests(browser: &Browser, service: &Service) {
    let console = browser.log("browser").await;
    assert!(console.is_empty(), "{console:?}");
    let requests = browser.requests().await;
    assert!(requests.iter().any(|request| request.contains("/orders.ndjson")), "{requests:?}");
    for request in requests {
        // Pages of the browser itself, and data in the page.
        let nobody = ["chrome://", "chrome-untrusted://", "data:"]
            .iter()
            .any(|scheme| request.starts_with(scheme));
        assert!(nobody || request.starts_with(&url(service)), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_appear_and_the_buttons_reach_the_server() {
    make_orders("v_page").await;
    let (admin, service, browser) =
        (admin().await, Service::on("page", "v_page"), Browser::start().await);
    browser.go(&url(&service)).await;
    assert_eq!(browser.run(STATE).await, "idle");
    assert_eq!(active(&admin, "page").await, 0, "nothing is asked before Start");

    browser.click("[type=submit]").await;
    in_state(&browser, "running").await;
    browser.until(&format!("{ROWS} > 2000")).await;
    assert_eq!(active(&admin, "page").await, 1);
    // The last rows as text, and no more of them than 20.
    let cells = "return [...document.querySelectorAll('#latest-rows tr')].map(
        row => [...row.cells].slice(1).map(cell => cell.textContent))";
    let shown = browser.run(cells).await;
    assert_eq!(shown.as_array().unwrap().len(), 20);
    let row = &shown[0].as_array().unwrap();
    assert_eq!(row[..4], ["2026-01-01 08:00", "<b>Ada</b>", "Kraków", "paid"]);
    assert_eq!(row[5], "gift, vip");
    // The numbers of the stream, drawn as well.
    browser.until("return document.getElementById('memory').textContent !== '0'").await;
    browser.until("return document.getElementById('chunk').textContent !== '0'").await;
    for chart in ["speed", "memory", "chunk"] {
        let drawn = "querySelector('.curve').getAttribute('d').includes('L')";
        browser.until(&format!("return document.getElementById('{chart}-chart').{drawn}")).await;
    }

    browser.click("#pause").await;
    in_state(&browser, "paused").await;
    eventually("the query waits", async || waits_for_client(&admin, "page").await).await;
    let paused = rows(&browser).await;
    // Two looks at the server's numbers later.
    let samples = "return speed.points.length";
    let sampled = browser.run(samples).await.as_u64().unwrap();
    browser.until(&format!("{samples} >= Math.min(120, {})", sampled + 3)).await;
    assert_eq!(rows(&browser).await, paused);
    assert_eq!(browser.run("return run.numbers.state").await, "paused");

    browser.click("#resume").await;
    in_state(&browser, "running").await;
    browser.until(&format!("{ROWS} > {}", paused + 2000)).await;
    browser.until("return run.numbers.state === 'running'").await;

    browser.click("#stop").await;
    in_state(&browser, "stopped").await;
    eventually("the query ends", async || active(&admin, "page").await == 0).await;
    let stopped = rows(&browser).await;
    assert!(stopped > paused);

    // Again, with filters: a complete response, at full speed.
    browser
        .run(
            "document.querySelector('[name=limit]').value = 30000;
              document.querySelector('[name=status]').value = 'paid';
              document.querySelector('[name=\"customer.city\"]').value = 'Kraków';
              document.getElementById('pace').value = 'Infinity'",
        )
        .await;
    browser.click("[type=submit]").await;
    in_state(&browser, "complete").await;
    assert_eq!(rows(&browser).await, 30_000);
    check_console_and_requests(&browser, &service).await;

    // An empty result leaves no rows from before.
    sql("create or replace view v_page as select '{}'::jsonb as data where false").await;
    browser.click("[type=submit]").await;
    browser.until(&format!("{ROWS} === 0")).await;
    in_state(&browser, "complete").await;
    assert_eq!(browser.run(cells).await, json!([]));
}

/// Closing the tab or leaving the page ends the query, also while it is paused.
#[tokio::test(flavor = "multi_thread")]
async fn closing_the_page_ends_the_query() {
    make_orders("v_closed").await;
    let (admin, service, browser) =
        (admin().await, Service::on("closed", "v_closed"), Browser::start().await);
    for close in ["tab", "page", "paused"] {
        browser.new_tab().await;
        browser.go(&url(&service)).await;
        browser.click("[type=submit]").await;
        browser.until(&format!("{ROWS} > 100")).await;
        assert_eq!(active(&admin, "closed").await, 1);
        if close == "paused" {
            browser.click("#pause").await;
            in_state(&browser, "paused").await;
            eventually("the query waits", async || waits_for_client(&admin, "closed").await).await;
        }
        match close {
            "page" => browser.go("about:blank").await,
            _ => browser.close_tab().await,
        }
        eventually("the query ends", async || active(&admin, "closed").await == 0).await;
    }
    assert_eq!(service.log(), "");
}

/// The connection to the service is cut, the service is killed and started again, and the session
/// on the database is terminated. The browser receives each row once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn event_source_resumes_without_a_gap_or_a_repetition() {
    // 27 MB, more than all buffers on the way hold: the query runs until the last fault.
    const ROWS: u64 = 60_000;
    sql(&format!(
        "create table t_source as
         select jsonb_build_object('id', i, 'text', repeat('x', 400)) as data
         from generate_series(1, {ROWS}) i;
         create index on t_source ((data->'id'));
         analyze t_source"
    ))
    .await;
    let (admin, browser) = (admin().await, Browser::start().await);
    let mut service = Service::on("source", "t_source");
    let proxy = Proxy::start(service.address.parse().unwrap()).await;
    browser.go(&format!("http://{}/", proxy.address)).await;
    // Slow enough that every fault is in the middle.
    proxy.piece(64 << 10);
    proxy.delay(Duration::from_millis(50));
    browser
        .run(
            "window.ids = []; window.opened = 0; window.failures = []; window.ended = null;
             const source = new EventSource('/orders.sse');
             source.onopen = () => { opened++; };
             source.onmessage = event => {
               const { id } = JSON.parse(event.data);
               ids.push(String(id) === event.lastEventId ? id : -1);
             };
             source.addEventListener('end', event => { ended = event.data; source.close(); });
             source.addEventListener('error', event => { failures.push(event.data ?? null); })",
        )
        .await;
    // Waits for this number of rows more than now.
    let more = async |rows: u64| {
        let now = browser.run("return ids.length").await.as_u64().unwrap();
        browser.until(&format!("return ids.length >= {}", now + rows)).await;
        assert_eq!(browser.run("return ended").await, Value::Null, "not in the middle");
    };
    let failed = async |fault: &mut dyn FnMut()| {
        let failures = browser.run("return failures.length").await.as_u64().unwrap();
        fault();
        browser.until(&format!("return failures.length > {failures}")).await;
    };
    more(1000).await;
    // A backend that is terminated: the library resumes on another connection.
    let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                     where application_name = 'source' and state = 'active'";
    assert_eq!(admin.query_one(terminate, &[]).await.unwrap().get::<_, i64>(0), 1);
    more(5000).await;
    assert_eq!(browser.run("return [opened, failures]").await, json!([1, []]));
    // A connection that is cut.
    failed(&mut || proxy.cut_after(100_000)).await;
    proxy.cut_after(u64::MAX);
    more(1000).await;
    // A service that is killed.
    failed(&mut || service.kill()).await;
    let _service = Service::with("source", |command| {
        command.arg("t_source").env("LISTEN", &service.address);
    });
    more(1000).await;
    proxy.delay(Duration::ZERO);
    browser.until("return ended !== null").await;
    let all = "return ids.length + ' ' + ids.every((id, i) => id === i + 1)";
    assert_eq!(browser.run(all).await, format!("{ROWS} true"));
    // None of them was sent by the service.
    assert_eq!(browser.run("return failures.every(data => data === null)").await, true);
    assert!(browser.run("return opened").await.as_u64().unwrap() >= 3);
}

/// An id that `into_sse` sends comes back as it was. So a resumption starts at the right row.
#[tokio::test]
async fn event_source_returns_ids_unchanged() {
    let ids = ["1042", "-1.50", "a b", "Kraków", "\u{85}", "\"\\{}", "😀"];
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let browser = Browser::start().await;
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let returned = tokio::spawn(async move {
        let mut returned = Vec::new();
        while returned.len() < ids.len() + 1 {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && socket.read_buf(&mut request).await.unwrap() > 0
            {}
            let request = String::from_utf8(request).unwrap();
            let is_source = request.starts_with("GET /source ");
            let mut body = "<!doctype html>".to_owned();
            if is_source {
                let lines = request.lines();
                let mut last = lines.filter_map(|line| line.strip_prefix("Last-Event-ID: "));
                returned.push(last.next().map(str::to_owned));
                body = match ids.get(returned.len() - 1) {
                    Some(id) => format!("retry: 1\nid: {id}\ndata: 1\n\n"),
                    None => String::new(),
                };
            }
            let kind = if is_source { "text/event-stream" } else { "text/html" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}"
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        returned
    });
    browser.go(&url).await;
    browser.run("new EventSource('/source')").await;
    let returned = tokio::time::timeout(Duration::from_secs(60), returned).await.unwrap().unwrap();
    let expected: Vec<_> = ids.iter().map(|id| Some((*id).to_owned())).collect();
    assert_eq!(returned[0], None);
    assert_eq!(returned[1..], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_shows_errors() {
    sql("create view v_page_breaks as
         select jsonb_build_object('id', i, 'n', 1 / (20000 - i)) as data
         from (select generate_series(1, 30000) i) as numbers")
    .await;
    let service = Service::on("saying", "v_page_breaks");
    let browser = Browser::start().await;
    browser.go(&url(&service)).await;
    browser.run("document.getElementById('pace').value = 'Infinity'").await;
    browser.click("[type=submit]").await;
    in_state(&browser, "failed").await;
    const ERROR: &str = "return document.getElementById('error').textContent";
    assert_eq!(
        browser.run(ERROR).await,
        "The response was aborted: the rows are incomplete. Reason: the orders could not be read: \
         see the service's log."
    );

    // A value that makes no sense is not even sent.
    let before = rows(&browser).await;
    browser.run("document.querySelector('[name=min_total]').value = -1").await;
    browser.click("[type=submit]").await;
    assert_eq!(browser.run("return document.activeElement.name").await, "min_total");
    assert_eq!(rows(&browser).await, before);
    browser
        .run(
            "document.querySelector('[name=min_total]').value = 500;
             document.querySelector('[name=max_total]').value = 100",
        )
        .await;
    browser.click("[type=submit]").await;
    assert_eq!(browser.run("return document.activeElement.name").await, "max_total");
    const NOTE: &str = "return document.getElementById('changed').textContent";
    assert_eq!(browser.run(NOTE).await, "Total to must be at least 500.");
    assert_eq!(browser.run(STATE).await, "failed", "nothing was sent");

    browser
        .run(
            "document.querySelector('[name=min_total]').value = '';
             document.querySelector('[name=max_total]').value = ''",
        )
        .await;
    drop(service);
    browser.click("[type=submit]").await;
    browser.until(&format!("{ERROR} === 'The service cannot be reached.'")).await;
    in_state(&browser, "failed").await;
    assert_eq!(browser.run(EMPTY).await, "The request failed before the first row.");
}

/// Returns the text of a table without rows.
const EMPTY: &str = "return document.getElementById('empty').textContent";

/// A table without rows shows why, and changed filters show when they apply.
#[tokio::test(flavor = "multi_thread")]
async fn page_says_what_it_waits_for() {
    make_orders("v_page_says").await;
    let service = Service::with("says", |command| {
        command.env("POOL_SIZE", "1").arg("v_page_says");
    });
    let browser = Browser::start().await;
    browser.go(&url(&service)).await;
    let text = async |id: &str| {
        let script = format!("return document.getElementById('{id}').textContent");
        browser.run(&script).await.as_str().unwrap().to_owned()
    };
    let set = async |name: &str, value: &str| {
        let script = format!(
            "const field = document.querySelector('[name={name}]');
             field.value = '{value}';
             field.dispatchEvent(new Event('input', {{ bubbles: true }}))"
        );
        browser.run(&script).await;
    };
    assert_eq!(browser.run(EMPTY).await, "Press Start to see rows here.");
    assert_eq!(text("start").await, "Start");
    browser.click("#start").await;
    browser.until(&format!("{ROWS} > 20")).await;
    assert_eq!(text("start").await, "Restart");
    assert!(text("sent").await.ends_with("sent to this browser"));
    assert_eq!(text("changed").await, "");
    set("limit", "7").await;
    assert_eq!(text("changed").await, "These filters apply after Restart, which ends this run.");
    set("limit", "").await;
    assert_eq!(text("changed").await, "");

    // Each chart has a label.
    browser.until("return speed.points.length >= 2 && memory.points.at(-1) > 0").await;
    let labels = "return [...document.querySelectorAll('[role=img]')].map(e => e.ariaLabel)";
    let labels = browser.run(labels).await;
    for (label, unit) in [("Rows per second", "rows/s"), ("Memory", "KiB"), ("Chunk size", "rows")]
    {
        let all = labels.as_array().unwrap().iter().map(|l| l.as_str().unwrap());
        let mut found = all.filter(|l| l.starts_with(label));
        let label = found.next().unwrap();
        assert!(label.contains(" in the last minute: now ") && label.contains(unit), "{label}");
    }
    assert!(text("memory-chart").await.starts_with("limit 1,024 KiB"));
    assert!(text("speed-chart").await.starts_with("highest "));
    assert!(text("speed-chart").await.ends_with("1 min agonow"));

    // In a narrow window, the page shows that there are more columns.
    let hidden = "return document.getElementById('more').hidden";
    assert_eq!(browser.run(hidden).await, true);
    let small = json!({"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": false});
    browser.devtools("Emulation.setDeviceMetricsOverride", small).await;
    browser.until(&format!("{hidden} === false")).await;
    assert_eq!(text("more").await, "Scroll for more columns \u{2192}");
    browser.run("document.getElementById('table').scrollLeft = 9999").await;
    browser.until("return document.getElementById('more').textContent.startsWith('\\u2190')").await;

    // With forced colors, a disabled button does not look like another one.
    let forced = json!({"features": [{"name": "forced-colors", "value": "active"}]});
    browser.devtools("Emulation.setEmulatedMedia", forced).await;
    let color = async |id: &str| {
        browser
            .run(&format!("return getComputedStyle(document.getElementById('{id}')).color"))
            .await
    };
    assert_ne!(color("resume").await, color("stop").await);

    // Another browser finds the pool full.
    browser.new_tab().await;
    browser.go(&url(&service)).await;
    browser.click("#start").await;
    in_state(&browser, "failed").await;
    assert_eq!(text("error").await, "no connection is available: try again later");
    assert_eq!(browser.run(EMPTY).await, "The request failed before the first row.");
    browser.close_tab().await;
    browser.click("#stop").await;
    in_state(&browser, "stopped").await;

    sql("create or replace view v_page_says as select '{}'::jsonb as data where false").await;
    browser.click("#start").await;
    in_state(&browser, "complete").await;
    assert_eq!(browser.run(EMPTY).await, "No order matches these filters.");
}

/// Every control can be reached and used by keyboard, has a name, is visible, and fits a small
/// screen.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_use_it() {
    make_orders("v_access").await;
    let (admin, service, browser) =
        (admin().await, Service::on("access", "v_access"), Browser::start().await);
    browser.go(&url(&service)).await;

    // As a screen reader gets it.
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({})).await;
    let nodes: Vec<&Value> =
        tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false).collect();
    let names = |role: &str| -> Vec<&str> {
        let of_role = nodes.iter().filter(|node| node["role"]["value"] == role);
        of_role.map(|node| node["name"]["value"].as_str().unwrap()).collect()
    };
    assert_eq!(names("RootWebArea"), ["Orders, live"]);
    assert_eq!(names("heading"), ["Orders, live"]);
    assert_eq!(names("main").len(), 1);
    assert_eq!(names("status").len(), 2, "the state, and a note on the filters");
    assert_eq!(names("image").len() + names("img").len(), 3, "a text for each chart");
    assert_eq!(names("form"), ["Which orders"]);
    assert_eq!(names("button"), ["Start", "Pause", "Resume", "Stop"]);
    assert_eq!(names("spinbutton"), ["Total from", "Total to", "At most"]);
    assert_eq!(names("combobox").len() + names("textbox").len(), 4, "Status, City, Tag, Pace");
    assert_eq!(names("region"), ["The latest 20 rows"]);
    assert_eq!(names("table"), ["The latest 20 rows"]);
    let columns = ["Order", "Placed", "Customer", "City", "Status", "Total", "Tags"];
    assert_eq!(names("columnheader"), columns);
    for node in &nodes {
        let role = node["role"]["value"].as_str().unwrap();
        let focusable = node["properties"].as_array().is_some_and(|all| {
            all.iter().any(|p| p["name"] == "focusable" && p["value"]["value"] == true)
        });
        let named = node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty());
        assert!(!focusable || named, "{role} has no name: {node}");
    }
    assert_eq!(browser.run("return document.documentElement.lang").await, "en");

    // Tab visits all controls in the order of the page, and each shows its focus.
    let mut passed = Vec::new();
    for _ in 0..12 {
        browser.keys(TAB).await;
        let focused = browser
            .run("const e = document.activeElement;
                  const style = getComputedStyle(e);
                  return [e.name || e.id || e.type || e.className, style.outlineStyle, parseFloat(style.outlineWidth) >= 2]")
            .await;
        assert_eq!((&focused[1], &focused[2]), (&json!("solid"), &json!(true)), "{focused}");
        passed.push(focused[0].as_str().unwrap().to_owned());
    }
    let controls = [
        "status",
        "customer.city",
        "min_total",
        "max_total",
        "tag",
        "limit",
        "pace",
        "start",
        "pause",
        "resume",
        "stop",
        "table",
    ];
    assert_eq!(passed, controls);

    // The stream by keys alone. What cannot be pressed keeps the focus, and does nothing.
    let focus = async |selector: &str| {
        browser.run(&format!("document.querySelector('{selector}').focus()")).await;
    };
    focus("[name=limit]").await;
    browser.keys(ENTER).await;
    in_state(&browser, "running").await;
    focus("#pause").await;
    browser.keys(SPACE).await;
    in_state(&browser, "paused").await;
    assert_eq!(browser.run("return document.activeElement.id").await, "pause");
    assert_eq!(browser.run("return document.getElementById('state').textContent").await, "Paused");
    browser.keys(ENTER).await;
    assert_eq!(browser.run(STATE).await, "paused");
    browser.keys(TAB).await;
    browser.keys(ENTER).await;
    in_state(&browser, "running").await;

    for scheme in ["light", "dark"] {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", media).await;
        let faint = browser.run(CONTRAST).await;
        assert_eq!(faint, json!([]), "in {scheme}");
    }

    let small = json!({"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": false});
    browser.devtools("Emulation.setDeviceMetricsOverride", small).await;
    browser.until("return innerWidth === 320").await;
    let fits =
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.run(fits).await, true);

    focus("#stop").await;
    browser.keys(ENTER).await;
    in_state(&browser, "stopped").await;
    eventually("the query ends", async || active(&admin, "access").await == 0).await;
    check_console_and_requests(&browser, &service).await;
}

/// Returns the texts whose contrast with their background is less than WCAG's 4.5 to 1.
const CONTRAST: &str = "
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if ((color[3] ?? 1) > 0) return color;
        }
    };
    const luminance = color => color.slice(0, 3)
        .map(c => (c /= 255, c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const faint = [];
    let seen = 0;
    for (const element of document.body.querySelectorAll('*')) {
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!text || !element.checkVisibility() || element.tagName === 'SCRIPT') continue;
        seen++;
        const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(luminance).sort((a, b) => b - a);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) faint.push([element.outerHTML.slice(0, 80), ratio]);
    }
    if (seen < 40) faint.push(['only so many texts', seen]);
    return faint;";
