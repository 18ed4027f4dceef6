//! Asks the daemon: the glance every second or two, what changes slowly less often, and what the screen shows at once.
//!
//! Three tasks, each with requests of its own, so that a doctor that takes seconds or a daemon that hangs holds up nothing
//! else. A daemon that doesn't answer is asked again and again: it comes back.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::model::Detail;
use super::state::{Answer, Event, Order, Wants};
use crate::cli::client::{Client, ClientError, parse};
use crate::surface::model::{ApplyRequest, DrainRequest, EndRequest, EventList, MaintenanceRequest, Status};

/// Answers that wait for the screen.
const EVENTS: usize = 64;
/// Orders that wait; people type them.
const ORDERS: usize = 8;
/// End of a console log that is shown, bytes.
const CONSOLE_BYTES: u64 = 16 * 1024;

const GLANCE: Duration = Duration::from_secs(1);
const GLANCE_SLOW: Duration = Duration::from_secs(2);
const MONEY: Duration = Duration::from_secs(15);
const EVIDENCE: Duration = Duration::from_secs(30);
const DOCTOR: Duration = Duration::from_secs(300);
const INVENTORY: Duration = Duration::from_secs(600);

/// The tasks; they end when it is dropped.
pub(super) struct Feed {
    /// What the daemon says.
    pub(super) events: mpsc::Receiver<Event>,
    wants: watch::Sender<Wants>,
    orders: mpsc::Sender<Order>,
    _tasks: JoinSet<()>,
}

impl Feed {
    pub(super) fn start(client: Client, slow: bool) -> Self {
        let (send, events) = mpsc::channel(EVENTS);
        let (wants, wanted) = watch::channel(Wants::default());
        let (orders, ordered) = mpsc::channel(ORDERS);
        let period = if slow { GLANCE_SLOW } else { GLANCE };
        let mut tasks = JoinSet::new();
        tasks.spawn(glances(client.clone(), period, wanted.clone(), send.clone()));
        tasks.spawn(slowly(client.clone(), wanted, send.clone()));
        tasks.spawn(carry_out(client, ordered, send));
        Self {
            events,
            wants,
            orders,
            _tasks: tasks,
        }
    }

    /// What the screen shows now.
    pub(super) fn want(&self, wants: Wants) {
        self.wants.send_replace(wants);
    }

    /// Passes an order on. One too many is dropped, and its answer never comes; the screen says "sent" until then.
    pub(super) fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::debug!("orders queue is full");
        }
    }
}

async fn glance(client: &Client) -> Result<Vec<Answer>, ClientError> {
    let status = client.get("/v1/status").await?;
    let contracts = client.get("/v1/contracts").await?;
    Ok(vec![Answer::Glance {
        status: Box::new(status),
        contracts,
    }])
}

async fn detail(client: &Client, id: &str) -> Result<Answer, ClientError> {
    let path = format!("/v1/contracts/{id}");
    let explanation = match client.get(&path).await {
        Err(error @ ClientError::Silent { .. }) => return Err(error),
        other => other.map_err(|error| error.to_string()),
    };
    let console = client
        .bytes(&format!("{path}/console?tail={CONSOLE_BYTES}"))
        .await;
    Ok(Answer::Detail(Box::new(Detail {
        id: id.to_owned(),
        explanation,
        vm: client.get(&format!("{path}/vm")).await.ok(),
        console: console
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| error.to_string()),
        evidence: None,
    })))
}

async fn log(client: &Client, known: &mut (i64, u64)) -> Result<Answer, ClientError> {
    let mut list: EventList = client.get(&format!("/v1/events?after={}", known.1)).await?;
    if list.started_ms != known.0 {
        // Another hostd than before: its numbers begin anew.
        list = client.get("/v1/events").await?;
    }
    *known = (
        list.started_ms,
        list.events.last().map_or(known.1, |event| event.number),
    );
    Ok(Answer::Log(list))
}

/// What is on the screen all the time.
async fn glances(
    client: Client,
    period: Duration,
    mut wanted: watch::Receiver<Wants>,
    send: mpsc::Sender<Event>,
) {
    let mut known = (0, 0);
    loop {
        let open = wanted.borrow_and_update().open.clone();
        let all = async {
            let mut answers = glance(&client).await?;
            answers.push(log(&client, &mut known).await?);
            if let Some(id) = &open {
                answers.push(detail(&client, id).await?);
            }
            Ok::<_, ClientError>(answers)
        };
        let events = match all.await {
            Ok(answers) => answers
                .into_iter()
                .map(|answer| Event::Answer { answer })
                .collect(),
            Err(error) => vec![Event::Lost {
                why: error.to_string(),
            }],
        };
        for event in events {
            if send.send(event).await.is_err() {
                return;
            }
        }
        let _ = tokio::time::timeout(period, wanted.changed()).await; // either way: look again
    }
}

/// Which of the slow things is due.
#[derive(Default)]
struct Due(std::collections::BTreeMap<&'static str, Instant>);

impl Due {
    fn is(&mut self, what: &'static str, every: Duration) -> bool {
        let due = self.0.get(what).is_none_or(|last| last.elapsed() >= every);
        if due {
            self.0.insert(what, Instant::now());
        }
        due
    }
}

/// What changes slowly, or takes the daemon long.
async fn slowly(client: Client, mut wanted: watch::Receiver<Wants>, send: mpsc::Sender<Event>) {
    let mut due = Due::default();
    let mut seen = Wants::default();
    loop {
        let wants = wanted.borrow_and_update().clone();
        if wants.refresh != seen.refresh {
            due = Due::default();
        }
        if wants.open != seen.open {
            due.0.remove("evidence");
        }
        seen = wants;
        let mut answers = Vec::new();
        if due.is("money", MONEY) {
            answers.push(
                client
                    .get("/v1/money")
                    .await
                    .map(|money| Answer::Money(Box::new(money))),
            );
        }
        if due.is("inventory", INVENTORY) {
            answers.push(
                client
                    .get("/v1/inventory")
                    .await
                    .map(|inventory| Answer::Inventory(Box::new(inventory))),
            );
        }
        if let Some(id) = seen.open.clone()
            && due.is("evidence", EVIDENCE)
        {
            let found = client.get(&format!("/v1/contracts/{id}/evidence")).await;
            answers.push(found.map(|evidence| Answer::Evidence { id, evidence }));
        }
        if due.is("doctor", DOCTOR) {
            answers.push(client.get("/v1/doctor").await.map(Answer::Doctor));
        }
        for answer in answers {
            match answer {
                Ok(answer) => {
                    if send.send(Event::Answer { answer }).await.is_err() {
                        return;
                    }
                }
                // The glance tells that nobody answers; everything is asked again when somebody does.
                Err(ClientError::Silent { .. }) => due = Due::default(),
                Err(error) => {
                    tracing::debug!(%error, "an answer that can't be shown");
                }
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(2), wanted.changed()).await; // either way: look again
    }
}

async fn carry_out(client: Client, mut orders: mpsc::Receiver<Order>, send: mpsc::Sender<Event>) {
    while let Some(order) = orders.recv().await {
        let done = match &order {
            Order::Drain { draining } => {
                post(&client, "/v1/drain", &DrainRequest { draining: *draining }).await
            }
            Order::Maintenance { reason } => {
                let request = MaintenanceRequest {
                    reason: reason.clone(),
                };
                post(&client, "/v1/maintenance", &request).await
            }
            Order::ApplyUpdate => post(&client, "/v1/update/apply", &ApplyRequest::default()).await,
            Order::End { id, reason } => {
                let request = EndRequest {
                    reason: reason.clone(),
                };
                let sent = client.post(&format!("/v1/contracts/{id}/end"), &request).await;
                sent.map(|_| ())
            }
        };
        let (ok, text) = match done {
            Ok(()) => (true, order.done()),
            Err(error) => (false, error.to_string()),
        };
        if send.send(Event::Done { ok, text }).await.is_err() {
            return;
        }
    }
}

/// An order that is answered with the host's status.
async fn post<T: Serialize>(client: &Client, path: &str, request: &T) -> Result<(), ClientError> {
    parse::<Status>(&client.post(path, request).await?).map(|_| ())
}

/// Everything once, for one frame.
pub(super) async fn once(client: &Client) -> Result<Vec<Event>, ClientError> {
    let mut answers = glance(client).await?;
    answers.push(log(client, &mut (0, 0)).await?);
    answers.push(Answer::Money(Box::new(client.get("/v1/money").await?)));
    answers.push(Answer::Inventory(Box::new(client.get("/v1/inventory").await?)));
    answers.push(Answer::Doctor(client.get("/v1/doctor").await?));
    Ok(answers
        .into_iter()
        .map(|answer| Event::Answer { answer })
        .collect())
}
