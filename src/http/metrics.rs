//! The figures of a node, in Prometheus' text format.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::lane_id::LaneId;
use super::routes::Route;
use super::sockets;
use crate::disk::DiskUse;
use crate::logging;
use crate::memory;
use crate::node::troubles::Troubles;
use crate::version;

/// Bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// All routes, and what has none.
const ROUTES: usize = Route::COUNT + 1;

/// All figures of one process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// The counters of `requests` that were used, by lane, route and status: looking one up by its labels costs more
    /// than a GET takes to find its pair.
    used: Vec<OnceLock<IntCounter>>,
    /// Which lanes' names are used.
    follower: bool,
    latency: Vec<Histogram>,
    /// How long transactions on the disk took.
    pub disk_sync: Histogram,
    /// Requests refused at once, by lane.
    pub sheds: IntCounterVec,
    /// Connections whose rest could not be read, and which cost a thread and two descriptors for good.
    pub abandoned: IntCounter,
    /// Connections that their clients have closed, and which cost a thread and two descriptors for good.
    pub stuck: IntGauge,
    /// Requests thrown away because their connection was cut off.
    pub cut_off: IntCounter,
    /// Accept loops that were replaced.
    pub accept_loops: IntCounter,
    /// Requests that a follower has passed on together with others.
    pub relayed: IntCounter,
    /// Handlers that panicked.
    pub panics: IntCounter,
    gauges: Gauges,
    /// Held while the gauges are set and written: those of shards that are gone are taken away first.
    rendering: Mutex<()>,
}

struct Gauges {
    queued: IntGaugeVec,
    parked: IntGauge,
    watchers: IntGauge,
    history: IntGauge,
    in_log: IntGauge,
    passed_on: IntGauge,
    connections: IntGauge,
    busy: IntGauge,
    pairs: IntGauge,
    bytes: IntGauge,
    retries: IntGauge,
    epoch: IntGauge,
    leads: IntGauge,
    unreachable: IntGauge,
    lost: IntGauge,
    shard_leads: IntGaugeVec,
    shard_misses: IntGaugeVec,
    threads: IntGauge,
    descriptors: IntGauge,
    resident: IntGauge,
    allocator_allocated: IntGauge,
    allocator_resident: IntGauge,
    memory_used: IntGauge,
    memory_bound: IntGauge,
    disk_log: IntGauge,
    disk_snapshots: IntGauge,
    dropped_lines: IntGauge,
}

/// The figures that are looked up when they are asked for.
pub struct Sample {
    /// How much waits in each lane.
    pub queued: Vec<(LaneId, usize)>,
    /// How many wait for their turn at another node.
    pub parked: usize,
    /// How many watch.
    pub watchers: usize,
    /// Bytes of what was done last, which is kept for them.
    pub history: u64,
    /// How many wait for the log of a shard.
    pub in_log: usize,
    /// Requests that wait for another node without a worker.
    pub passed_on: usize,
    /// How many connections have a request in progress.
    pub busy: usize,
    /// Pairs held.
    pub pairs: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Bytes of what is remembered of writes.
    pub retries: u64,
    /// Bytes that the node may hold; 0 where that is not bounded.
    pub memory_bound: u64,
    /// What is on its disk.
    pub disk: DiskUse,
    /// The epoch of the view, 0 without one.
    pub epoch: u64,
    /// Whether the node leads the meta group.
    pub leads: bool,
    /// What it sees of its cluster.
    pub troubles: Troubles,
    /// The port that is listened on.
    pub port: u16,
}

/// Each has a count of its own; 0 stands for any other.
const STATUSES: [u16; 26] = [
    200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 416, 417, 422, 426, 431,
    500, 503, 507, 508, 0,
];

impl Metrics {
    /// All figures at zero.
    ///
    /// # Panics
    /// When a name is registered twice, which is a mistake in this function.
    #[must_use]
    pub fn new(follower: bool) -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry.register(Box::new(counters.clone())).expect("registered once");
            counters
        };
        let latency = LaneId::ALL.iter().map(|lane| {
            let options = HistogramOpts::new(
                "evenkv_request_seconds",
                "Time from the headers of a request to its answer, which is then written, by lane",
            );
            let options = options.const_label("lane", lane.name(follower)).buckets(BUCKETS.to_vec());
            let histogram = Histogram::with_opts(options).expect("valid buckets");
            registry.register(Box::new(histogram.clone())).expect("registered once per lane");
            histogram
        });
        let options = HistogramOpts::new(
            "evenkv_disk_sync_seconds",
            "Time for a transaction on the disk, with DATA_DIR",
        );
        let disk_sync = Histogram::with_opts(options.buckets(BUCKETS.to_vec())).expect("valid buckets");
        registry.register(Box::new(disk_sync.clone())).expect("registered once");
        let stuck = IntGauge::new(
            "evenkv_stuck_connections",
            "Connections that their clients have closed and that cannot be let go: each costs a thread and two descriptors until the process ends",
        );
        let stuck = stuck.expect("a valid name");
        registry.register(Box::new(stuck.clone())).expect("registered once");
        register_build(&registry);
        Self {
            stuck,
            latency: latency.collect(),
            disk_sync,
            requests: counters(
                "evenkv_requests_total",
                "Answers, by route, status and lane",
                &["route", "status", "lane"],
            ),
            used: (0..LaneId::ALL.len() * ROUTES * STATUSES.len()).map(|_| OnceLock::new()).collect(),
            sheds: counters(
                "evenkv_sheds_total",
                "Requests refused at once since their lane was full",
                &["lane"],
            ),
            abandoned: counter(
                "evenkv_abandoned_connections_total",
                "Connections that declared a body too large to drain: each costs a thread and two descriptors for good",
            ),
            cut_off: counter(
                "evenkv_cut_off_requests_total",
                "Requests thrown away since their connection was cut off",
            ),
            accept_loops: counter(
                "evenkv_accept_loops_replaced_total",
                "Accept loops that ended and were replaced",
            ),
            relayed: counter(
                "evenkv_relayed_requests_total",
                "Requests that were passed on to the main on the connection for many, which were not asked by HTTP then; 0 where this is no follower",
            ),
            panics: counter("evenkv_panics_total", "Handlers that panicked and were answered 500"),
            gauges: Gauges::new(&registry),
            rendering: Mutex::new(()),
            follower,
            registry,
        }
    }

    /// Counts an answer.
    pub fn answered(&self, lane: LaneId, route: Option<Route>, status: u16, took: Duration) {
        let column = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        let index = (lane as usize * ROUTES + route.map_or(Route::COUNT, |route| route as usize))
            * STATUSES.len()
            + column;
        let counter = self.used[index].get_or_init(|| {
            let status = if STATUSES[column] == 0 { "other".to_owned() } else { status.to_string() };
            self.requests.with_label_values(&[Route::name(route), &status, lane.name(self.follower)])
        });
        counter.inc();
        self.latency[lane as usize].observe(took.as_secs_f64());
    }

    /// How many answers clients have got, whatever they have asked but for health and figures.
    pub fn answered_to_clients(&self) -> u64 {
        let of_lane = |lane: LaneId| {
            let first = lane as usize * ROUTES * STATUSES.len();
            self.used[first..first + ROUTES * STATUSES.len()].iter()
        };
        let used = [LaneId::Client, LaneId::ClientLarge].into_iter().flat_map(of_lane);
        used.filter_map(OnceLock::get).map(IntCounter::get).sum()
    }

    /// Counts a request that was refused since its lane was full.
    pub fn shed(&self, lane: LaneId) {
        self.sheds.with_label_values(&[lane.name(self.follower)]).inc();
    }

    /// All figures as text.
    pub fn render(&self, sample: &Sample) -> Vec<u8> {
        let _alone = self.rendering.lock();
        self.gauges.set(sample, self.follower);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("text goes into memory");
        text
    }
}

/// Says which program it is.
fn register_build(registry: &Registry) {
    let options =
        Opts::new("evenkv_build_info", "The program: its version and the commit it was built of, always 1");
    let options = options.const_label("version", version::VERSION).const_label("commit", version::COMMIT);
    let build = IntGauge::with_opts(options).expect("a valid name");
    build.set(1);
    registry.register(Box::new(build)).expect("registered once");
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label]).expect("a valid name");
            registry.register(Box::new(gauges.clone())).expect("registered once");
            gauges
        };
        Self {
            queued: gauges("evenkv_queue_length", "Requests that wait for a worker, by lane", "lane"),
            watchers: gauge("evenkv_watchers", "Connections on which somebody watches"),
            history: gauge(
                "evenkv_watch_history_bytes",
                "What this node keeps of what was done last, for those who watch",
            ),
            parked: gauge("evenkv_parked_requests", "Requests that wait for their turn at another node"),
            in_log: gauge("evenkv_requests_in_log", "Requests that wait for the replicas of a shard"),
            passed_on: gauge(
                "evenkv_requests_passed_on",
                "Requests that wait for another node without a worker",
            ),
            connections: gauge("evenkv_connections", "Connections of clients and other nodes to this node"),
            busy: gauge("evenkv_connections_busy", "Connections with a request in progress"),
            pairs: gauge("evenkv_pairs", "Pairs held"),
            bytes: gauge("evenkv_pair_bytes", "Bytes of the keys and values held"),
            retries: gauge(
                "evenkv_retry_bytes",
                "Bytes of what is remembered of writes, so that one that is sent again is done once",
            ),
            epoch: gauge("evenkv_epoch", "Epoch of the view, 0 without one"),
            leads: gauge(
                "evenkv_meta_leader",
                "Whether the node leads the meta group: it coordinates view changes",
            ),
            unreachable: gauge(
                "evenkv_unreachable_nodes",
                "Nodes of the view that this node does not reach; of a follower its main",
            ),
            lost: gauge(
                "evenkv_lost_shards",
                "Shards of the view that are known to be lost with their nodes",
            ),
            shard_leads: gauges(
                "evenkv_shard_leader",
                "Whether the node leads the shard, for each that it holds a replica of: in a sum over all nodes 1",
                "shard",
            ),
            shard_misses: gauges(
                "evenkv_shard_missing_replicas",
                "Replicas of a shard that the node leads which are not heard, or catch up",
                "shard",
            ),
            threads: gauge("evenkv_process_threads", "Threads of the process"),
            descriptors: gauge("evenkv_process_open_fds", "Open file descriptors of the process"),
            resident: gauge("evenkv_process_resident_bytes", "Resident memory of the process"),
            allocator_allocated: gauge(
                "evenkv_allocator_allocated_bytes",
                "Bytes that are allocated, as the allocator rounds them up",
            ),
            allocator_resident: gauge(
                "evenkv_allocator_resident_bytes",
                "Resident memory of the allocator, with what it has not given back yet",
            ),
            memory_used: gauge(
                "evenkv_memory_used_bytes",
                "What MAX_MEMORY bounds: the resident memory of the allocator",
            ),
            memory_bound: gauge("evenkv_memory_bound_bytes", "MAX_MEMORY, 0 where it is unset"),
            disk_log: gauge("evenkv_disk_log_bytes", "What the logs take in DATA_DIR"),
            disk_snapshots: gauge("evenkv_disk_snapshot_bytes", "What the snapshots take in DATA_DIR"),
            dropped_lines: gauge(
                "evenkv_log_dropped_lines",
                "Lines of the log that were dropped since the process was started, since nobody read them in time",
            ),
        }
    }

    fn set(&self, sample: &Sample, follower: bool) {
        for (lane, count) in &sample.queued {
            self.queued.with_label_values(&[lane.name(follower)]).set(signed(*count as u64));
        }
        self.parked.set(signed(sample.parked as u64));
        self.watchers.set(signed(sample.watchers as u64));
        self.history.set(signed(sample.history));
        self.in_log.set(signed(sample.in_log as u64));
        self.passed_on.set(signed(sample.passed_on as u64));
        self.busy.set(signed(sample.busy as u64));
        self.pairs.set(signed(sample.pairs));
        self.bytes.set(signed(sample.bytes));
        self.retries.set(signed(sample.retries));
        self.disk_log.set(signed(sample.disk.log));
        self.disk_snapshots.set(signed(sample.disk.snapshots));
        self.epoch.set(signed(sample.epoch));
        self.leads.set(i64::from(sample.leads));
        self.set_troubles(&sample.troubles);
        self.connections.set(signed(sockets::open(sample.port).map_or(0, |open| open.len() as u64)));
        self.threads.set(signed(entries("/proc/self/task")));
        self.descriptors.set(signed(entries("/proc/self/fd")));
        self.resident.set(signed(resident_bytes()));
        let memory = memory::usage_now();
        self.allocator_allocated.set(signed(memory.allocated));
        self.allocator_resident.set(signed(memory.resident));
        self.memory_used.set(signed(memory.resident));
        self.memory_bound.set(signed(sample.memory_bound));
        self.dropped_lines.set(signed(logging::dropped_lines()));
    }

    fn set_troubles(&self, troubles: &Troubles) {
        self.unreachable.set(signed(troubles.unreached.len() as u64));
        self.lost.set(signed(troubles.lost.len() as u64));
        self.shard_leads.reset();
        self.shard_misses.reset();
        for shard in &troubles.held {
            let id = shard.id.to_string();
            self.shard_leads.with_label_values(&[&id]).set(i64::from(shard.led.is_some()));
            if let Some(led) = &shard.led {
                self.shard_misses.with_label_values(&[&id]).set(signed(led.missing.len() as u64));
            }
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn entries(folder: &str) -> u64 {
    fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::openapi;
    use crate::node::troubles::{HeldShard, Led};

    #[test]
    fn every_status_that_is_documented_has_a_count_of_its_own() {
        for status in openapi::statuses() {
            assert!(STATUSES.contains(&status), "{status}");
        }
    }

    #[test]
    fn answers_are_counted_by_route_status_and_lane() {
        let metrics = Metrics::new(false);
        metrics.answered(LaneId::Client, Some(Route::Key), 200, Duration::from_millis(2));
        metrics.answered(LaneId::Client, Some(Route::Key), 200, Duration::from_millis(2));
        metrics.answered(LaneId::Health, Some(Route::Livez), 299, Duration::ZERO);
        metrics.shed(LaneId::Forwarded);
        let sample = Sample {
            queued: vec![(LaneId::Client, 3)],
            parked: 0,
            watchers: 0,
            history: 0,
            in_log: 0,
            passed_on: 0,
            busy: 1,
            pairs: 2,
            bytes: 5,
            retries: 128,
            memory_bound: 300,
            disk: DiskUse { log: 5, snapshots: 6 },
            epoch: 1,
            leads: true,
            troubles: Troubles {
                unreached: vec!["n3:1".parse().unwrap()],
                held: vec![
                    HeldShard { id: 1, led: Some(Led { wanted: 3, missing: vec!["n3:1".parse().unwrap()] }) },
                    HeldShard { id: 2, led: None },
                ],
                lost: vec![(3, "n4:1".parse().unwrap()), (4, "n5:1".parse().unwrap())],
            },
            port: 1,
        };
        let text = String::from_utf8(metrics.render(&sample)).unwrap();
        for line in [
            "evenkv_requests_total{lane=\"client\",route=\"keys\",status=\"200\"} 2",
            "evenkv_requests_total{lane=\"health\",route=\"livez\",status=\"other\"} 1",
            "evenkv_request_seconds_bucket{lane=\"client\",le=\"0.0025\"} 2",
            "evenkv_sheds_total{lane=\"forwarded\"} 1",
            "evenkv_queue_length{lane=\"client\"} 3",
            "evenkv_pairs 2",
            "evenkv_retry_bytes 128",
            "evenkv_memory_bound_bytes 300",
            "evenkv_disk_log_bytes 5",
            "evenkv_disk_snapshot_bytes 6",
            "evenkv_unreachable_nodes 1",
            "evenkv_lost_shards 2",
            "evenkv_shard_leader{shard=\"1\"} 1",
            "evenkv_shard_leader{shard=\"2\"} 0",
            "evenkv_shard_missing_replicas{shard=\"1\"} 1",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is not in\n{text}");
        }
        assert!(
            !text.contains("evenkv_shard_missing_replicas{shard=\"2\"}"),
            "only its leader knows:\n{text}"
        );
        let gone = Sample { troubles: Troubles::default(), ..sample };
        let text = String::from_utf8(metrics.render(&gone)).unwrap();
        assert!(!text.contains("shard=\"1\""), "a shard that is not held any more:\n{text}");
    }
}
