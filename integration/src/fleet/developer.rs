//! A developer's client on the internet's side. A network namespace belongs to a thread, so the client has a thread of
//! its own that has gone there, with a runtime that never leaves it.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result};
use ledger::client::{Client, ClientConfig, ClientError};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

type Work = Box<dyn FnOnce(&Runtime, &Client) + Send>;

/// See the module.
pub(super) struct Developer {
    work: Sender<Work>,
}

impl Developer {
    /// Starts the thread; it ends with this value.
    pub(super) fn start(netns: &Path, config: ClientConfig) -> Result<Self> {
        let netns = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
        let (work, orders) = channel();
        let (tell, ready) = channel();
        thread::spawn(move || match prepare(&netns, config) {
            Ok((runtime, client)) => {
                if tell.send(Ok(())).is_ok() {
                    serve(&orders, &runtime, &client);
                }
            }
            // Nobody who listens is gone: `start` waits below.
            Err(error) => drop(tell.send(Err(error))),
        });
        ready.recv().context("the developer's thread died")??;
        Ok(Self { work })
    }

    /// One call, waited for.
    pub(super) fn call<T, F>(&self, call: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ClientError>>,
    {
        let (tell, answer) = channel();
        let work: Work = Box::new(move |runtime, client| {
            // The caller waits for it.
            let _ = tell.send(runtime.block_on(call(client.clone())));
        });
        self.work
            .send(work)
            .ok()
            .context("the developer's thread is gone")?;
        Ok(answer.recv().context("the developer's thread died")??)
    }

    /// The same call for each of many, all at once; answers in order, or the first error.
    pub(super) fn each<A, T, F>(
        &self,
        arguments: Vec<A>,
        call: impl Fn(Client, A) -> F + Send + 'static,
    ) -> Result<Vec<T>>
    where
        A: Send + 'static,
        T: Send + 'static,
        F: Future<Output = Result<T, ClientError>> + Send + 'static,
    {
        self.call(move |client| async move {
            let mut calls = JoinSet::new();
            for (at, argument) in arguments.into_iter().enumerate() {
                let call = call(client.clone(), argument);
                calls.spawn(async move { (at, call.await) });
            }
            let mut answers = calls.join_all().await;
            answers.sort_by_key(|(at, _)| *at);
            answers.into_iter().map(|(_, answer)| answer).collect()
        })
    }
}

fn prepare(netns: &File, config: ClientConfig) -> Result<(Runtime, Client)> {
    setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the internet's namespace")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let client = Client::connect(config)?;
    Ok((runtime, client))
}

fn serve(orders: &Receiver<Work>, runtime: &Runtime, client: &Client) {
    while let Ok(work) = orders.recv() {
        work(runtime, client);
    }
}
