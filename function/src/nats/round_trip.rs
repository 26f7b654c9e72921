//! Several requests to NATS at once, and their answers in whatever order they come: one round
//! trip.

use bytes::Bytes;
use watermelon_proto::headers::HeaderMap;
use watermelon_proto::{MessageBase, ServerMessage, Subject};

use super::jetstream::{Batch, BatchError, Progress};

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whom it is for.
    pub subject: Subject,
    /// What it says in its headers.
    pub headers: HeaderMap,
    /// What it says.
    pub payload: Bytes,
    /// What comes back.
    pub reply: Reply,
}

/// What comes back for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// One message.
    Message,
    /// The messages of a batched direct get.
    Batch,
}

/// What came back.
#[derive(Debug)]
pub enum Answer {
    /// For [`Reply::Message`].
    Message(Box<ServerMessage>),
    /// For [`Reply::Batch`]. A batch that failed leaves the other answers as they are.
    Batch(Result<Batch, BatchError>),
}

#[derive(Debug)]
enum Slot {
    Message(Option<Box<ServerMessage>>),
    Batch(Batch),
    Complete(Result<Batch, BatchError>),
}

/// Answers as they come in.
#[derive(Debug, Default)]
pub struct RoundTrip(Vec<(Subject, Slot)>);

impl RoundTrip {
    /// Expects the answer to `request` on `inbox`; the message to publish for it.
    pub fn ask(&mut self, request: Request, inbox: Subject) -> MessageBase {
        let Request { subject, headers, payload, reply } = request;
        let slot = match reply {
            Reply::Message => Slot::Message(None),
            Reply::Batch => Slot::Batch(Batch::default()),
        };
        self.0.push((inbox.clone(), slot));
        MessageBase { subject, reply_subject: Some(inbox), headers, payload }
    }

    /// Takes a message; one that answers nothing of this round is ignored.
    pub fn push(&mut self, message: ServerMessage) {
        let Some((_, slot)) = self.0.iter_mut().find(|(inbox, _)| *inbox == message.base.subject) else {
            return;
        };
        match slot {
            Slot::Message(answer) => *answer = Some(Box::new(message)),
            Slot::Batch(batch) => match batch.push(message) {
                Ok(Progress::Pending) => {}
                Ok(Progress::More(_) | Progress::Complete) => {
                    *slot = Slot::Complete(Ok(std::mem::take(batch)));
                }
                Err(error) => *slot = Slot::Complete(Err(error)),
            },
            Slot::Complete(_) => {}
        }
    }

    /// Whether all answers are there.
    pub fn is_complete(&self) -> bool {
        self.0.iter().all(|(_, slot)| match slot {
            Slot::Message(answer) => answer.is_some(),
            Slot::Batch(_) => false,
            Slot::Complete(_) => true,
        })
    }

    /// The answers in the order of their requests; those that are missing are left out.
    pub fn into_answers(self) -> Vec<Answer> {
        let answers = self.0.into_iter().filter_map(|(_, slot)| match slot {
            Slot::Message(answer) => answer.map(Answer::Message),
            Slot::Batch(_) => None,
            Slot::Complete(batch) => Some(Answer::Batch(batch)),
        });
        answers.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::Decoder;
    use watermelon_proto::proto::ServerOp;

    fn message(line: &str) -> ServerMessage {
        let mut decoder = Decoder::default();
        decoder.feed(line.as_bytes());
        let Ok(Some(ServerOp::Message { message })) = decoder.decode() else { panic!("no message") };
        message
    }

    fn request(reply: Reply) -> Request {
        let subject = Subject::from_static("s");
        Request { subject, headers: HeaderMap::new(), payload: Bytes::new(), reply }
    }

    #[test]
    fn answers_come_in_any_order_and_are_given_in_that_of_the_requests() {
        let mut round = RoundTrip::default();
        assert!(round.is_complete());
        for (inbox, reply) in [("i.1", Reply::Message), ("i.2", Reply::Batch), ("i.3", Reply::Message)] {
            let asked = round.ask(request(reply), Subject::from_static(inbox));
            assert_eq!(asked.reply_subject.unwrap().as_str(), inbox);
        }
        for line in
            ["MSG i.3 1 1\r\nc\r\n", "MSG i.2 1 1\r\nb\r\n", "MSG i.9 1 1\r\nx\r\n", "MSG i.1 1 1\r\na\r\n"]
        {
            round.push(message(line));
            assert!(!round.is_complete());
        }
        round.push(message("HMSG i.2 1 16 16\r\nNATS/1.0 204\r\n\r\n\r\n"));
        assert!(round.is_complete());
        let payloads: Vec<Bytes> = round
            .into_answers()
            .into_iter()
            .map(|answer| match answer {
                Answer::Message(message) => message.base.payload,
                Answer::Batch(batch) => batch.unwrap().into_payloads().concat().into(),
            })
            .collect();
        assert_eq!(payloads, ["a", "b", "c"]);
    }
    #[test]
    fn a_batch_that_failed_is_an_answer_of_its_own() {
        let mut round = RoundTrip::default();
        for (inbox, reply) in [("i.1", Reply::Batch), ("i.2", Reply::Message)] {
            round.ask(request(reply), Subject::from_static(inbox));
        }
        round.push(message("HMSG i.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"));
        round.push(message("MSG i.2 1 1\r\na\r\n"));
        assert!(round.is_complete());
        let [Answer::Batch(Err(error)), Answer::Message(_)] = &round.into_answers()[..] else { panic!() };
        assert_eq!(*error, BatchError::NoStream);
    }
}
