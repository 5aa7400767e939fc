//! A follower that passes many requests on at one time, before mains that a real one is not on demand: slow, silent, or talking nonsense.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use evenkv::wire::frames;
use evenkv::wire::relayed::{Answer, Given, Method, PROTOCOL, Question};
use support::node::Node;
use support::relay::{connected, read_frame, read_head, relayed};
use support::{START_DEADLINE, timed, wait_until};

const BODY: &[u8] = br#"{"value":1}"#;
/// A main that is down is said within this time.
const DOWN_LIMIT: Duration = Duration::from_millis(1500);

/// Held by the tests that measure time, so that they do not slow each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a main made by hand does with the connections that come.
struct MadeMain {
    address: String,
    /// Requests about keys that came by HTTP.
    by_http: Arc<AtomicUsize>,
}

/// Serves what comes on a connection for many requests.
type Serve = dyn Fn(&mut TcpStream) + Send + Sync;

impl MadeMain {
    /// It is alive as long as `lives` says so. By HTTP it answers 200 and `{}`.
    fn start(lives: impl Fn() -> bool + Send + Sync + 'static, serve: Box<Serve>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        support::openapi::leave_out(&address);
        let by_http = Arc::new(AtomicUsize::new(0));
        let (lives, serve, counted) = (Arc::new(lives), Arc::new(serve), Arc::clone(&by_http));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (lives, serve, counted) = (Arc::clone(&lives), Arc::clone(&serve), Arc::clone(&counted));
                thread::spawn(move || answer_http(&mut stream, &*lives, &**serve, &counted));
            }
        });
        Self { address, by_http }
    }

    fn follower(&self) -> Node {
        let follower = Node::follower(&self.address, &[]);
        follower.wait_ready();
        // Whoever comes first is asked by HTTP, and has the connection opened.
        follower.http().get("/kvs/keys/first");
        follower
    }
}

fn answer_http(stream: &mut TcpStream, lives: &dyn Fn() -> bool, serve: &Serve, counted: &AtomicUsize) {
    while let Some(head) = read_head(stream) {
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("GET /relay ") {
            assert!(head.contains(&format!("Upgrade: {PROTOCOL}\r\n")), "{head}");
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
            return serve(stream);
        }
        let lower = head.to_ascii_lowercase();
        let length = lower
            .split_once("content-length: ")
            .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse().unwrap());
        stream.read_exact(&mut vec![0; length]).unwrap();
        if head.contains(" /livez ") {
            if !lives() {
                return;
            }
        } else {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").is_err() {
            return;
        }
    }
}

/// Asks until a request has come on the connection: 200 with the body `relayed` tells one that was answered on it.
fn give(number: u64, status: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let headers = vec![("X-Thing", "one"), ("X-Thing", "two")];
    Answer::Given(Given { status, content_type: "text/odd; a=b", headers, body }).encode(number, &mut frame);
    frame
}

fn asked(stream: &mut TcpStream) -> Option<(u64, Vec<u8>)> {
    let frame = read_frame(stream)?;
    Some((Question::decode(&frame).expect("a question").0, frame))
}

#[test]
fn what_the_client_sent_comes_to_the_main_and_its_answer_goes_back() {
    let (sender, came) = mpsc::channel();
    let sender = Mutex::new(sender);
    let main = MadeMain::start(
        || true,
        Box::new(move |stream| {
            while let Some((number, frame)) = asked(stream) {
                sender.lock().unwrap().send(frame).unwrap();
                stream.write_all(&give(number, 418, b"\0\xff any bytes\r\n")).unwrap();
            }
        }),
    );
    let follower = main.follower();
    let mut client = follower.http();
    wait_until("it is asked on the connection", START_DEADLINE, || client.get("/kvs/keys/a").status == 418);
    for _ in came.try_iter() {}
    let headers = [
        ("X-Thing", "a  b; c=\"d\""),
        ("Content-Type", "text/odd"),
        ("Connection", "keep-alive, x"),
        ("TE", "trailers"),
    ];
    for target in ["/kvs/keys/a/../b//%2F?x=%20", "/kv-store/short", "/kvs/keys/<#>"] {
        for (method, wanted) in [("PUT", Method::Put), ("GET", Method::Get), ("DELETE", Method::Delete)] {
            for length in [0, 5, 1025, 32_768] {
                let body = vec![b'x'; length];
                let answer = client.request(method, target, &headers, &body);
                assert_eq!((answer.status, &answer.body[..]), (418, &b"\0\xff any bytes\r\n"[..]));
                assert_eq!(answer.header("Content-Type"), Some("text/odd; a=b"));
                let things = answer.headers.iter().filter(|(name, _)| name == "X-Thing");
                assert_eq!(things.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["one", "two"]);
                let frame = came.recv().unwrap();
                let (_, question) = Question::decode(&frame).unwrap();
                assert_eq!((question.method, question.body), (wanted, &body[..]));
                assert_eq!(question.target, target.replace("<#>", "%3C%23%3E"));
                assert!((1..=5000).contains(&question.left_ms), "{}", question.left_ms);
                let names: Vec<_> = question.headers.iter().map(|(name, _)| *name).collect();
                assert_eq!(names, ["X-Thing", "Content-Type", "Evenkv-Hop"]);
                assert_eq!(question.headers[0].1, "a  b; c=\"d\"");
            }
        }
    }
    let before = main.by_http.load(Ordering::Relaxed);
    for (method, target, length) in [
        ("PUT", "/kvs/keys/a", 32_769),
        ("GET", "/kvs/view", 0),
        ("PATCH", "/kvs/keys/a", 1),
        ("GET", "/kvs", 0),
    ] {
        assert_eq!(client.request(method, target, &[], &vec![b'x'; length]).status, 200, "{method} {target}");
    }
    assert_eq!(main.by_http.load(Ordering::Relaxed), before + 4);
}

/// How many questions a main has left without an answer.
static UNANSWERED: AtomicUsize = AtomicUsize::new(0);

/// What a main does with a question, whether it lives then, and what its client is told of a PUT and of a GET.
type Case = (&'static str, bool, fn(&mut TcpStream, u64), (u16, Option<&'static str>), u16);

#[test]
fn a_main_that_does_not_answer_is_told_as_the_contract_says() {
    let _alone = alone();
    let nothing = |_: &mut TcpStream, _| ();
    let cases: [Case; 6] = [
        (
            "it hangs up",
            true,
            |stream, _| stream.shutdown(Shutdown::Both).unwrap(),
            (503, Some("unknown")),
            200,
        ),
        (
            "half an answer and silence",
            false,
            |stream, number| stream.write_all(&give(number, 200, b"x")[..9]).unwrap(),
            (503, Some("unknown")),
            503,
        ),
        ("silence", false, nothing, (503, Some("unknown")), 503),
        ("silence of one that lives", true, nothing, (503, Some("unknown")), 503),
        (
            "garbage",
            true,
            |stream, _| stream.write_all(b"\x05\0\0\0abcde").unwrap(),
            (503, Some("unknown")),
            503,
        ),
        (
            "by HTTP",
            true,
            |stream, number| {
                let mut frame = Vec::new();
                Answer::ByHttp.encode(number, &mut frame);
                stream.write_all(&frame).unwrap();
            },
            (200, None),
            200,
        ),
    ];
    for (what, lives, react, wanted_put, wanted_get) in cases {
        for (method, wanted) in [("PUT", wanted_put), ("GET", (wanted_get, None))] {
            let (asks, came) = mpsc::channel();
            let asks = Mutex::new(asks);
            let main = MadeMain::start(
                // It lives until it is asked what it does not answer.
                move || lives || UNANSWERED.load(Ordering::SeqCst) == 0,
                Box::new(move |stream| {
                    while let Some((number, frame)) = asked(stream) {
                        let (_, question) = Question::decode(&frame).unwrap();
                        if question.target == "/kvs/keys/warm" {
                            stream.write_all(&give(number, 418, b"")).unwrap();
                            continue;
                        }
                        UNANSWERED.fetch_add(1, Ordering::SeqCst);
                        asks.lock().unwrap().send(number).unwrap();
                        react(stream, number);
                    }
                }),
            );
            UNANSWERED.store(0, Ordering::SeqCst);
            let follower = Node::follower(&main.address, &[("REQUEST_TIMEOUT_MS", "2500")]);
            follower.wait_ready();
            let mut client = follower.http();
            wait_until("it is asked on the connection", START_DEADLINE, || {
                client.get("/kvs/keys/warm").status == 418
            });
            let (answer, took) = timed(|| client.request(method, "/kvs/keys/a", &[], BODY));
            assert_eq!(
                (answer.status, answer.header("Evenkv-Outcome")),
                wanted,
                "{what}: {method} {}",
                answer.text()
            );
            assert_eq!(came.try_iter().count(), 1, "{what}: {method} was sent twice on it");
            if !lives {
                assert_eq!(answer.json()["error"], "Main instance is down", "{what}");
                assert!(took < DOWN_LIMIT, "{what}: {took:?}");
            }
            if what == "silence of one that lives" {
                assert_eq!(answer.json()["error"], "Unable to satisfy request", "{what}");
                assert!(took >= Duration::from_millis(2400), "{what}: {took:?}");
            }
        }
    }
}

/// One that was asked just now waits as long as it would alone, although somebody else has waited for a second already.
#[test]
fn silence_is_judged_for_each_request() {
    let _alone = alone();
    let main = Node::single(&[]);
    let follower = connected(main.address(), &[]);
    main.pause();
    let (_sender, never) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let first = scope.spawn(|| timed(|| follower.http().put("/kvs/keys/first", BODY)));
        // Nobody sends on this channel: the pause is what the test is about.
        assert!(never.recv_timeout(Duration::from_millis(900)).is_err());
        let second = scope.spawn(|| timed(|| follower.http().put("/kvs/keys/second", BODY)));
        for asked in [first, second] {
            let (answer, took) = asked.join().unwrap();
            assert_eq!(answer.json()["error"], "Main instance is down");
            assert_eq!(answer.header("Evenkv-Outcome"), Some("unknown"));
            assert!((Duration::from_millis(1250)..DOWN_LIMIT).contains(&took), "{took:?}");
        }
    });
    let answer = follower.http().put("/kvs/keys/later", BODY);
    assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "it is known to be down");
    main.resume();
    wait_until("it is asked again", START_DEADLINE, || {
        follower.http().put("/kvs/keys/later", BODY).status < 300
    });
    let before = relayed(&follower);
    wait_until("on a connection", START_DEADLINE, || {
        follower.http().get("/kvs/keys/later");
        relayed(&follower) > before
    });
}

/// A slow main is not down, however many others it answers meanwhile, or none.
#[test]
fn a_slow_answer_is_waited_for_and_holds_up_no_other() {
    let _alone = alone();
    let main = MadeMain::start(
        || true,
        Box::new(|stream| {
            while let Some((number, frame)) = asked(stream) {
                let (_, question) = Question::decode(&frame).unwrap();
                if question.target == "/kvs/keys/slow" {
                    let mut later = stream.try_clone().unwrap();
                    thread::spawn(move || {
                        thread::sleep(Duration::from_millis(4500));
                        later.write_all(&give(number, 418, b"slow")).unwrap();
                    });
                } else {
                    stream.write_all(&give(number, 418, b"quick")).unwrap();
                }
            }
        }),
    );
    let follower = main.follower();
    wait_until("it is asked on the connection", START_DEADLINE, || {
        follower.http().get("/kvs/keys/a").status == 418
    });
    thread::scope(|scope| {
        let slow = scope.spawn(|| follower.http().put("/kvs/keys/slow", BODY));
        let (quick, took) = timed(|| follower.http().put("/kvs/keys/quick", BODY));
        assert_eq!(quick.text(), "quick");
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(slow.join().unwrap().text(), "slow");
    });
}

#[test]
fn a_main_that_takes_leave_is_asked_nothing_more_on_the_connection() {
    let main = MadeMain::start(
        || true,
        Box::new(|stream| {
            while let Some((number, _)) = asked(stream) {
                let mut bytes = Vec::new();
                frames::put_last(&mut bytes);
                bytes.extend(give(number, 418, b"the last one"));
                stream.write_all(&bytes).unwrap();
            }
        }),
    );
    let follower = main.follower();
    let mut client = follower.http();
    for _ in 0..3 {
        wait_until("it is asked on the connection", START_DEADLINE, || {
            client.get("/kvs/keys/a").status == 418
        });
        assert_eq!(client.put("/kvs/keys/a", BODY).status, 200, "it is asked by HTTP");
    }
}
