//! The operations of one folder that wait for a thread.

use std::collections::VecDeque;
use std::sync::Weak;

use sessile_proto::affinity::Source;

/// Most operations of a folder that wait for a thread.
const MAX_QUEUE: usize = 1024;

/// The waiting operations. The sources take turns, and a full queue is shared equally.
#[derive(Default)]
pub(super) struct FairQueue {
    /// The sources that have jobs, each with its jobs. The first source has the next turn.
    sources: VecDeque<(Source, VecDeque<Job>)>,
    jobs: usize,
}

impl FairQueue {
    /// The number of jobs.
    pub(super) const fn len(&self) -> usize {
        self.jobs
    }

    /// Adds a job. In a full queue, the job takes the place of a job whose source has more jobs.
    ///
    /// Returns the jobs that have no place any more. One of them can be the new job.
    pub(super) fn push(&mut self, source: Source, job: Job) -> VecDeque<Job> {
        let mut displaced = VecDeque::new();
        if self.jobs >= MAX_QUEUE {
            displaced = self.remove_unwanted();
        }
        if self.jobs >= MAX_QUEUE {
            match self.displace_for(source) {
                Some(other) => displaced.push_back(other),
                None => {
                    displaced.push_back(job);
                    return displaced;
                }
            }
        }
        match self.sources.iter_mut().find(|(known, _)| *known == source) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.sources.push_back((source, VecDeque::from([job]))),
        }
        self.jobs += 1;
        displaced
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        let (source, mut jobs) = self.sources.pop_front()?;
        let job = jobs.pop_front();
        if !jobs.is_empty() {
            self.sources.push_back((source, jobs));
        }
        self.jobs -= 1;
        job
    }

    /// Removes the jobs whose callers have gone.
    fn remove_unwanted(&mut self) -> VecDeque<Job> {
        let mut removed = VecDeque::new();
        for (_, jobs) in &mut self.sources {
            let all = std::mem::take(jobs).into_iter();
            let (wanted, unwanted): (VecDeque<Job>, VecDeque<Job>) = all.partition(Job::is_wanted);
            *jobs = wanted;
            removed.extend(unwanted);
        }
        self.sources.retain(|(_, jobs)| !jobs.is_empty());
        self.jobs -= removed.len();
        removed
    }

    /// Removes the newest job of the source with the most jobs. `None` if `source`, with one more job, would
    /// then have more than that source.
    fn displace_for(&mut self, source: Source) -> Option<Job> {
        let own = self.sources.iter().find(|(known, _)| *known == source);
        let own = own.map_or(0, |(_, jobs)| jobs.len());
        let (_, most) = (self.sources.iter_mut()).max_by_key(|(_, jobs)| jobs.len())?;
        if most.len() <= own + 1 {
            return None;
        }
        self.jobs -= 1;
        most.pop_back()
    }
}

/// An operation that waits for a thread.
///
/// A job can own the last handle of a file, whose drop locks the pool. So no job is dropped while the pool
/// is locked.
pub(super) struct Job {
    /// Has no strong reference if the request was given up.
    pub(super) caller: Weak<()>,
    pub(super) operation: Box<dyn FnOnce() + Send>,
}

impl Job {
    /// Runs the operation if its caller still waits for the result.
    pub(super) fn run(self) {
        if self.is_wanted() {
            (self.operation)();
        }
    }

    fn is_wanted(&self) -> bool {
        self.caller.strong_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::locked;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::{Arc, Mutex};

    fn source(number: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(192, 0, number, 1)))
    }

    /// A queue, with the callers of its jobs.
    #[derive(Default)]
    struct TestQueue {
        queue: FairQueue,
        callers: Vec<Arc<()>>,
        order: Arc<Mutex<Vec<u8>>>,
    }

    impl TestQueue {
        /// Returns true if the new job has a place.
        fn push(&mut self, number: u8) -> bool {
            let caller = Arc::new(());
            let order = Arc::clone(&self.order);
            let job = Job {
                caller: Arc::downgrade(&caller),
                operation: Box::new(move || locked(&order).push(number)),
            };
            let displaced = self.queue.push(source(number), job);
            let has_place =
                !(displaced.iter()).any(|job| job.caller.ptr_eq(&Arc::downgrade(&caller)));
            self.callers.push(caller);
            has_place
        }

        fn fill(&mut self, number: u8, jobs: usize) {
            for _ in 0..jobs {
                assert!(self.push(number));
            }
        }

        fn run(&mut self) -> Vec<u8> {
            while let Some(job) = self.queue.pop() {
                (job.operation)();
            }
            assert_eq!(self.queue.jobs, 0);
            std::mem::take(&mut locked(&self.order))
        }
    }

    #[test]
    fn sources_take_turns() {
        let mut queue = TestQueue::default();
        queue.fill(1, 3);
        queue.fill(2, 1);
        queue.fill(3, 2);
        assert_eq!(queue.run(), [1, 2, 3, 1, 3, 1]);
    }

    #[test]
    fn a_full_queue_is_shared_equally() {
        let mut queue = TestQueue::default();
        queue.fill(1, MAX_QUEUE);
        assert!(!queue.push(1));
        queue.fill(2, MAX_QUEUE / 2);
        assert!(!queue.push(2));
        assert!(!queue.push(1));
        queue.fill(3, 1);
        assert_eq!(queue.queue.jobs, MAX_QUEUE);
        let order = queue.run();
        let jobs_of = |number| order.iter().filter(|&&it| it == number).count();
        assert_eq!(jobs_of(1) + jobs_of(2), MAX_QUEUE - 1);
        assert!(jobs_of(1).abs_diff(jobs_of(2)) <= 1);
    }

    #[test]
    fn requests_that_were_given_up_free_their_places() {
        let mut queue = TestQueue::default();
        queue.fill(1, MAX_QUEUE);
        queue.callers.clear();
        queue.fill(1, MAX_QUEUE);
        assert_eq!(queue.run().len(), MAX_QUEUE);
    }
}
