//! Compares the session table with other caches. Measures an insertion into a full table, a
//! successful look-up and the heap bytes of an entry. Prints Markdown.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use rustix::time::{ClockId, clock_gettime};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use sessile_proto::Time;
use sessile_proto::session::{Limits, Lookup, ShardedTable};

const SIZES: [usize; 2] = [10_000, 1_000_000];
const THREADS: [usize; 2] = [1, 2];
const ROUNDS: usize = 11;

/// Operations of each thread in a round.
const BATCH: u64 = 200_000;

const VALUE: [u8; 120] = [7; 120];
const NOW: Time = Time::from_unix_millis(1_800_000_000_000);

type Key = [u8; 32];

/// The interface of the compared caches.
trait Cache: Send + Sync {
    fn insert(&self, key: Key);
    /// Reads a value in the way that the cache offers, and returns its length.
    fn look_up(&self, key: &Key) -> Option<usize>;
    fn entries(&self) -> usize;
}

/// A name, and the constructor for a number of entries.
type Contestant = (&'static str, fn(usize) -> Box<dyn Cache>);

const CONTESTANTS: [Contestant; 5] = [
    ("sessile, copied to a `Vec`", |entries| {
        Box::new(Copied(memory(entries)))
    }),
    ("sessile, read in place", |entries| {
        Box::new(InPlace(memory(entries)))
    }),
    ("rustls `ServerSessionMemoryCache`, `Vec`", |entries| {
        Box::new(ServerCache {
            cache: ServerSessionMemoryCache::new(entries),
            inserted: AtomicU64::new(0),
            entries,
        })
    }),
    ("moka `sync::Cache`, `Arc`", |entries| {
        let cache = moka::sync::Cache::builder().max_capacity(entries as u64);
        Box::new(cache.eviction_policy(EvictionPolicy::lru()).build())
    }),
    ("quick_cache `sync::Cache`, `Arc`", |entries| {
        Box::new(quick_cache::sync::Cache::new(entries))
    }),
];

struct Copied(ShardedTable);
struct InPlace(ShardedTable);

/// rustls's cache does not report its length, so `inserted` counts the insertions.
struct ServerCache {
    cache: Arc<ServerSessionMemoryCache>,
    inserted: AtomicU64,
    entries: usize,
}

fn memory(max_entries: usize) -> ShardedTable {
    let lifetime = Duration::from_secs(36_000);
    ShardedTable::new(
        Limits {
            max_entries,
            lifetime,
        },
        0x5e55_11e0,
    )
}

fn found<V>(lookup: Lookup<V>) -> Option<V> {
    match lookup {
        Lookup::Found(value) => Some(value),
        _ => None,
    }
}

fn touch(value: &[u8]) -> usize {
    black_box((value.first(), value.last()));
    value.len()
}

impl Cache for Copied {
    fn insert(&self, key: Key) {
        self.0.insert(&key, &VALUE, NOW, NOW);
    }

    fn look_up(&self, key: &Key) -> Option<usize> {
        found(self.0.get(key, NOW)).map(|value| touch(&value))
    }

    fn entries(&self) -> usize {
        self.0.entries()
    }
}

impl Cache for InPlace {
    fn insert(&self, key: Key) {
        self.0.insert(&key, &VALUE, NOW, NOW);
    }

    fn look_up(&self, key: &Key) -> Option<usize> {
        found(self.0.read(key, NOW, touch))
    }

    fn entries(&self) -> usize {
        self.0.entries()
    }
}

impl Cache for ServerCache {
    fn insert(&self, key: Key) {
        self.cache.put(key.to_vec(), VALUE.to_vec());
        self.inserted.fetch_add(1, Ordering::Relaxed);
    }

    fn look_up(&self, key: &Key) -> Option<usize> {
        self.cache.get(key).map(|value| touch(&value))
    }

    fn entries(&self) -> usize {
        self.entries
            .min(self.inserted.load(Ordering::Relaxed) as usize)
    }
}

impl Cache for moka::sync::Cache<Key, Arc<[u8]>> {
    fn insert(&self, key: Key) {
        self.insert(key, Arc::from(&VALUE[..]));
    }

    fn look_up(&self, key: &Key) -> Option<usize> {
        self.get(key).map(|value| touch(&value))
    }

    fn entries(&self) -> usize {
        self.run_pending_tasks();
        self.entry_count() as usize
    }
}

impl Cache for quick_cache::sync::Cache<Key, Arc<[u8]>> {
    fn insert(&self, key: Key) {
        self.insert(key, Arc::from(&VALUE[..]));
    }

    fn look_up(&self, key: &Key) -> Option<usize> {
        self.get(key).map(|value| touch(&value))
    }

    fn entries(&self) -> usize {
        self.len()
    }
}

/// The key for a number. The bytes are pseudo-random, but the same in every run.
fn key(n: u64) -> Key {
    let mut key = [0; 32];
    for (at, word) in key.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(n * 4 + at as u64).to_le_bytes());
    }
    key
}

/// The splitmix64 generator.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One cache at one size.
struct Bench {
    name: &'static str,
    /// A full cache, in which each insertion evicts.
    full: Box<dyn Cache>,
    /// A half-full cache, so that every policy keeps all keys that are looked up.
    holding: Box<dyn Cache>,
    bytes_per_entry: f64,
    /// The next key that was never inserted.
    next: u64,
    /// Nanoseconds of an insertion and of a look-up, by number of threads and by round.
    insert: [Vec<f64>; THREADS.len()],
    look_up: [Vec<f64>; THREADS.len()],
}

impl Bench {
    fn new((name, make): Contestant, entries: usize) -> Self {
        let before = allocated();
        let full = make(entries);
        let next = entries as u64 * 5 / 2;
        (0..next).for_each(|n| full.insert(key(n)));
        let count = full.entries();
        let bytes_per_entry = (allocated() - before) as f64 / count as f64;
        let holding = make(entries * 2);
        (0..entries as u64).for_each(|n| holding.insert(key(n)));
        Self {
            name,
            full,
            holding,
            bytes_per_entry,
            next,
            insert: Default::default(),
            look_up: Default::default(),
        }
    }

    fn round(&mut self, entries: usize, which: usize) {
        let (threads, first) = (THREADS[which], self.next);
        self.next += BATCH * threads as u64;
        self.insert[which].push(time(threads, |thread| {
            let first = first + thread * BATCH;
            (first..first + BATCH).for_each(|n| self.full.insert(key(n)));
        }));
        self.look_up[which].push(time(threads, |thread| {
            let keys = (0..BATCH).map(|n| key(mix(first + thread * BATCH + n) % entries as u64));
            let hits = keys
                .filter(|key| self.holding.look_up(key).is_some())
                .count();
            assert_eq!(hits as u64, BATCH, "{} lost entries", self.name);
        }));
    }
}

/// Processor time of all threads for each operation, in nanoseconds. Other programs on the machine
/// do not change this time. A wait for a lock costs only the time to fall asleep and to wake up.
fn time(threads: usize, batch: impl Fn(u64) + Sync) -> f64 {
    let timed = &|thread| {
        let start = processor_time();
        batch(thread);
        processor_time() - start
    };
    let total: Duration = std::thread::scope(|scope| {
        let spawn = |thread| scope.spawn(move || timed(thread));
        let spawned: Vec<_> = (0..threads as u64).map(spawn).collect();
        let times = spawned
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        times.sum()
    });
    total.as_nanos() as f64 / (BATCH * threads as u64) as f64
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let baseline = median(
        &mut (0..ROUNDS)
            .map(|_| {
                time(1, |_| {
                    (0..BATCH).for_each(|n| {
                        black_box(key(mix(n)));
                    })
                })
            })
            .collect::<Vec<_>>(),
    );
    for entries in SIZES {
        let mut benches: Vec<Bench> = CONTESTANTS
            .iter()
            .map(|&made| Bench::new(made, entries))
            .collect();
        for _ in 0..ROUNDS {
            for which in 0..THREADS.len() {
                benches
                    .iter_mut()
                    .for_each(|bench| bench.round(entries, which));
            }
        }
        println!("\n### {entries} entries\n");
        println!(
            "| | insert, 1 thread | insert, 2 threads | look-up, 1 thread | look-up, 2 threads | bytes per entry | beyond key and value |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|");
        for bench in &mut benches {
            let [insert_1, insert_2] = bench.insert.each_mut().map(|times| median(times));
            let [look_up_1, look_up_2] = bench.look_up.each_mut().map(|times| median(times));
            let bytes = bench.bytes_per_entry;
            println!(
                "| {} | {insert_1:.0} ns | {insert_2:.0} ns | {look_up_1:.0} ns | {look_up_2:.0} ns | {bytes:.0} | {:.0} |",
                bench.name,
                bytes - (size_of::<Key>() + VALUE.len()) as f64,
            );
        }
    }
    println!("\nMaking a key takes {baseline:.0} ns of each, on one thread.");
}

/// Counts the heap bytes that this thread requests, without the overhead of the allocator.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

fn allocated() -> isize {
    ALLOCATED.get()
}

fn count(bytes: isize) {
    ALLOCATED.set(ALLOCATED.get() + bytes);
}

// SAFETY: every call goes to the system's allocator unchanged, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
