//! Runs hyper's tasks of an HTTP/2 connection. hyper makes a task for each stream.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::server::graceful::GracefulConnection;

use super::metrics::Metrics;
use super::request_task::RequestTask;
use super::respond::Connection;

/// Runs hyper's tasks of an HTTP/2 connection on the thread of the connection.
#[derive(Clone)]
pub(super) struct TaskExecutor(Rc<Tasks>);

struct Tasks {
    /// The task of the request that hyper has just handed to the service. `None` if the response is ready
    /// and its body has one piece.
    next: Cell<Option<RequestTask>>,
    /// Tasks that need one poll, unless the client has no window for their response.
    ready: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>,
    body_timeout: Duration,
    metrics: Arc<Metrics>,
}

impl TaskExecutor {
    pub(super) fn new(body_timeout: Duration, metrics: &Arc<Metrics>) -> Self {
        Self(Rc::new(Tasks {
            next: Cell::default(),
            ready: RefCell::default(),
            body_timeout,
            metrics: Arc::clone(metrics),
        }))
    }

    /// Makes the task of the current request. hyper calls the executor right after the service.
    pub(super) fn new_task(&self) -> RequestTask {
        let task = RequestTask::new(self.0.body_timeout, &self.0.metrics);
        self.0.next.set(Some(task.clone()));
        task
    }

    /// Hands the responses that are ready to the connection, which sends them in one write.
    fn poll_ready_tasks(&self, cx: &mut Context<'_>) {
        let Tasks {
            ready,
            body_timeout,
            metrics,
            ..
        } = &*self.0;
        for mut task in ready.borrow_mut().drain(..) {
            if task.as_mut().poll(cx).is_pending() {
                let blocked = RequestTask::blocked(*body_timeout, metrics);
                tokio::task::spawn_local(blocked.run(task));
            }
        }
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for TaskExecutor {
    fn execute(&self, future: F) {
        match self.0.next.take() {
            Some(task) => drop(tokio::task::spawn_local(task.run(future))),
            None => self.0.ready.borrow_mut().push(Box::pin(future)),
        }
    }
}

/// An HTTP/2 connection that runs the tasks of ready responses itself.
///
/// The ready responses then leave in one write, and need no task of the runtime.
pub(super) struct Http2<C> {
    connection: C,
    tasks: TaskExecutor,
    client: Rc<Connection>,
}

impl<C: GracefulConnection + Unpin> Http2<C> {
    pub(super) fn new(connection: C, tasks: TaskExecutor, client: &Rc<Connection>) -> Self {
        Self {
            connection,
            tasks,
            client: Rc::clone(client),
        }
    }

    /// Ends the connection after the open requests. A connection of HTTP/2 tells its client to send no more.
    pub(super) fn graceful_shutdown(mut self: Pin<&mut Self>, _awaits_first: bool) {
        Pin::new(&mut self.connection).graceful_shutdown();
    }
}

impl<C: GracefulConnection + Unpin> Future for Http2<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        if self.client.is_ending.take() {
            // The last response is not written yet, so GOAWAY leaves before it.
            Pin::new(&mut self.connection).graceful_shutdown();
        }
        self.tasks.poll_ready_tasks(cx);
        if polled.is_pending() && self.client.status.take_held_output() {
            cx.waker().wake_by_ref();
        }
        polled
    }
}
