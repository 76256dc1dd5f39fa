//! More threads, for when requests pile up or one will wait for the disk.

use super::memory::Window;
use super::tree::Tree;
use crate::sync::{self, lock};
use crate::virtio::Chain;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// The most threads; each takes one request at a time. One is started when a request finds all busy.
const WORKERS_MAX: usize = 4;

/// A request on its way: the queue it came from and its chain.
pub(super) struct Job {
    pub(super) queue: usize,
    pub(super) chain: Chain,
    pub(super) guest: Arc<GuestMemoryMmap>,
}

/// A request served: what goes into the used ring.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) written: u32,
}

/// The threads and the work between them and the event loop.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    tree: Arc<Tree>,
    state: Mutex<State>,
    work: Condvar,
    /// Written when `State::done` stops being empty.
    completion: EventFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    /// Why a worker could not go on; the device cannot then.
    failed: Option<io::Error>,
    idle: usize,
    closing: bool,
}

impl Pool {
    /// A pool without threads yet, that serves `tree` and writes to `completion` when something is done.
    pub(super) fn new(tree: Arc<Tree>, completion: EventFd) -> Self {
        let shared = Shared { tree, state: Mutex::default(), work: Condvar::new(), completion };
        Self { shared: Arc::new(shared), workers: Vec::new() }
    }

    /// Has `job` served. The caller limits how many are under way.
    ///
    /// # Errors
    /// Gives the job back when there is no thread and none can be started.
    pub(super) fn submit(&mut self, job: Job) -> Result<(), Job> {
        let all_busy = {
            let state = self.shared.lock();
            state.idle <= state.jobs.len()
        };
        if all_busy
            && self.workers.len() < WORKERS_MAX
            && let Err(error) = self.start_worker()
        {
            log::debug!("virtio-fs: no thread more than {}: {error}", self.workers.len());
            if self.workers.is_empty() {
                return Err(job);
            }
        }
        self.shared.lock().jobs.push_back(job);
        self.shared.work.notify_one();
        Ok(())
    }

    /// What has been served since the last call.
    ///
    /// # Errors
    /// Why a worker gave up.
    pub(super) fn take_done(&self) -> io::Result<Vec<Done>> {
        let mut state = self.shared.lock();
        match state.failed.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut state.done)),
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let name = format!("fs{}", self.workers.len());
        self.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        Ok(())
    }
}

impl Drop for Pool {
    /// Waits for the requests under way: afterwards nothing of the device touches the guest's memory.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing under way either.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A worker's life.
    fn work(&self) {
        if let Err(error) = self.tree.enter() {
            return self.fail(error);
        }
        let mut window = None;
        while let Some(job) = self.next() {
            match self.serve(job, &mut window) {
                Ok(done) => self.complete(done),
                Err(error) => return self.fail(error),
            }
        }
    }

    fn serve(&self, job: Job, window: &mut Option<Window>) -> io::Result<Done> {
        let head = job.chain.head_index();
        let written = self.tree.serve(&job.chain, &job.guest, window)?;
        Ok(Done { queue: job.queue, head, written })
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            state = sync::wait(&self.work, state);
            state.idle -= 1;
        }
    }

    fn complete(&self, done: Done) {
        let mut state = self.lock();
        state.done.push(done);
        let first = state.done.len() == 1;
        drop(state);
        if first {
            self.wake();
        }
    }

    fn fail(&self, error: io::Error) {
        self.lock().failed = Some(error);
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the event loop is awake.
        let _ = self.completion.write(1);
    }
}
