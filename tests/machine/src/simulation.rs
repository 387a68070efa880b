//! Simulated time, and tasks that run in it, one at a time and in an order that a seed decides.
//!
//! No time passes on this machine: where every task waits, the clock goes to the next moment that one waits for.
//! Tokio can do this too, with its feature `test-util`; Cargo would then build every SDK a second time.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_smithy_async::{
    rt::sleep::{AsyncSleep, Sleep},
    time::TimeSource,
};

/// Milliseconds since the simulation started.
pub type Time = u64;

/// A source of numbers that look like chance (splitmix64): the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    /// Between 0 and 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        self.below(1 << 32) as f64 / (1_u64 << 32) as f64
    }

    /// How long something takes on its way through a network or a service: as a rule some milliseconds, at times
    /// seconds, so that whatever runs at the same time overtakes each other.
    pub(crate) fn latency(&mut self) -> Time {
        match self.below(20) {
            0 => 200 + self.below(2_500),
            1..=3 => 20 + self.below(200),
            _ => 1 + self.below(20),
        }
    }
}

enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce() + Send>),
}

struct State {
    now: Time,
    /// The time of day when the simulation started, in milliseconds since 1970: this machine's.
    epoch_ms: u64,
    serial: u64,
    events: BTreeMap<(Time, u64), Event>,
    random: Random,
}

/// Simulated time, and chance.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl Clock {
    fn new(seed: u64) -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_ms = u64::try_from(epoch.as_millis()).unwrap_or_default();
        let state = State { now: 0, epoch_ms, serial: 0, events: BTreeMap::new(), random: Random::new(seed) };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> Time {
        self.state().now
    }

    /// The time of day, in milliseconds since 1970.
    pub(crate) fn epoch_ms(&self) -> u64 {
        let state = self.state();
        state.epoch_ms + state.now
    }

    /// The time of day as Step Functions writes it.
    pub(crate) fn timestamp(&self) -> String {
        timestamp(self.epoch_ms())
    }

    pub(crate) fn chance<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.state().random)
    }

    pub(crate) fn latency(&self) -> Time {
        self.chance(Random::latency)
    }

    pub(crate) fn sleep(&self, duration: Time) -> Sleeping {
        Sleeping { clock: self.clone(), until: self.now() + duration, event: None }
    }

    /// Does `action` after `delay`, whoever is still there then.
    pub(crate) fn after(&self, delay: Time, action: impl FnOnce() + Send + 'static) {
        let due = self.now() + delay;
        self.state().add(due, Event::Run(Box::new(action)));
    }
}

/// A time of day as Step Functions writes it.
pub(crate) fn timestamp(epoch_ms: u64) -> String {
    let millis = i64::try_from(epoch_ms).unwrap_or_default();
    let time = chrono::DateTime::from_timestamp_millis(millis).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

impl State {
    fn add(&mut self, due: Time, event: Event) -> (Time, u64) {
        self.serial += 1;
        self.events.insert((due, self.serial), event);
        (due, self.serial)
    }
}

impl AsyncSleep for Clock {
    fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(self.sleep(Time::try_from(duration.as_millis()).unwrap_or(Time::MAX)))
    }
}

/// For functions, whose clients know the time by it.
impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.epoch_ms())
    }
}

pub(crate) struct Sleeping {
    clock: Clock,
    until: Time,
    event: Option<(Time, u64)>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        if self.clock.now() >= until {
            return Poll::Ready(());
        }
        // Whoever polls it again without being woken by it, as `select` does, has the same waker.
        if self.event.is_none() {
            let event = self.clock.state().add(until, Event::Wake(context.waker().clone()));
            self.event = Some(event);
        }
        Poll::Pending
    }
}

/// Nobody waits for it any more.
impl Drop for Sleeping {
    fn drop(&mut self) {
        let unused = self.event.and_then(|event| self.clock.state().events.remove(&event));
        drop(unused);
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Debug)]
struct Ready {
    task: u64,
    queue: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

/// Tasks in simulated time.
#[derive(Clone)]
pub(crate) struct Simulation {
    pub(crate) clock: Clock,
    /// A task that is being polled is not in it.
    tasks: Rc<RefCell<BTreeMap<u64, Option<Task>>>>,
    next: Rc<RefCell<u64>>,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        Self { clock: Clock::new(seed), tasks: Rc::default(), next: Rc::default(), ready: Arc::default() }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        self.tasks.borrow_mut().insert(id, Some(Box::pin(task)));
        self.ready().push_back(id);
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until nothing is left that could happen.
    ///
    /// # Errors
    /// After `steps` steps, each a moment that somebody waited for or a task that went on.
    pub(crate) fn run(&self, steps: u64) -> Result<(), String> {
        for _ in 0..steps {
            let next = self.ready().pop_front();
            if let Some(id) = next {
                self.poll(id);
                continue;
            }
            let mut state = self.clock.state();
            let Some(((due, _), event)) = state.events.pop_first() else {
                return Ok(());
            };
            state.now = due;
            drop(state);
            match event {
                Event::Wake(waker) => waker.wake(),
                Event::Run(action) => action(),
            }
        }
        Err(format!("it has not come to an end after {steps} steps, at {} ms", self.clock.now()))
    }

    fn poll(&self, id: u64) {
        let Some(mut task) = self.tasks.borrow_mut().get_mut(&id).and_then(Option::take) else {
            return;
        };
        let waker = Waker::from(Arc::new(Ready { task: id, queue: Arc::clone(&self.ready) }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.borrow_mut().remove(&id);
        } else if let Some(place) = self.tasks.borrow_mut().get_mut(&id) {
            *place = Some(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_take_turns_in_the_order_of_simulated_time() {
        let simulation = Simulation::new(1);
        let log: Rc<RefCell<Vec<(Time, &str)>>> = Rc::default();
        for (name, naps) in [("slow", [3_600_000, 1]), ("quick", [5, 10])] {
            let (clock, log) = (simulation.clock.clone(), Rc::clone(&log));
            simulation.spawn(async move {
                for nap in naps {
                    clock.sleep(nap).await;
                    log.borrow_mut().push((clock.now(), name));
                }
            });
        }
        simulation.run(100).unwrap();
        assert_eq!(*log.borrow(), [(5, "quick"), (15, "quick"), (3_600_000, "slow"), (3_600_001, "slow")]);
    }

    #[test]
    fn what_never_ends_is_an_error() {
        let simulation = Simulation::new(1);
        let clock = simulation.clock.clone();
        simulation.spawn(async move {
            loop {
                clock.sleep(1).await;
            }
        });
        assert!(simulation.run(50).unwrap_err().contains("not come to an end"));
    }
}
