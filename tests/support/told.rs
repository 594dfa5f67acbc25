//! What the limiters of this crate are asked and say, in the words of a history.

use quotalite::{Denial, Error, Obstacle, PermitId, Request, RequestError, Settled};

use crate::subject::{Answer, Closing, Defined, Refused, Settling, Takes};

pub fn request(takes: &Takes, id: Option<&str>) -> Request {
    let request = match id {
        Some(id) => Request::new().id(id),
        None => Request::new(),
    };
    takes.iter().fold(request, |request, (key, amount)| {
        request.take(key.as_str(), *amount)
    })
}

pub fn not_defined(error: Error) -> Defined {
    match error {
        Error::Conflict { stored, given, .. } => Defined::Conflict {
            stored: *stored,
            given: *given,
        },
        Error::OtherKind { .. } => Defined::OtherKind,
        Error::Finer { .. } => Defined::Finer,
        Error::UnknownLimit { .. } => Defined::Unknown,
        error => Defined::Failed(error.to_string()),
    }
}

pub fn denied(denial: &Denial) -> Answer {
    match denial.obstacle() {
        Obstacle::Slots(count) => match denial.retry_at() {
            None => Answer::Taken {
                key: denial.key().to_owned(),
                count,
                amount: denial.amount(),
                now_ns: denial.now().as_nanos(),
            },
            Some(at) => Answer::Failed(format!("slots come back at {at:?}")),
        },
        _ => Answer::Refused(refused(denial)),
    }
}

pub fn refused(denial: &Denial) -> Refused {
    Refused {
        key: denial.key().to_owned(),
        obstacle: denial.obstacle(),
        amount: denial.amount(),
        now_ns: denial.now().as_nanos(),
        retry_at_ns: denial.retry_at().expect("a rate").as_nanos(),
    }
}

pub fn answer(error: Error) -> Answer {
    match error {
        Error::TooLate {
            denial, deadline, ..
        } => Answer::TooLate {
            refused: refused(&denial),
            deadline_ns: deadline.as_nanos(),
        },
        Error::NeverFits {
            key,
            amount,
            obstacle,
            ..
        } => Answer::NeverFits {
            key,
            amount,
            obstacle,
        },
        Error::UnknownLimit { key, .. } => Answer::Unknown { key },
        Error::IdTaken { id, stored, .. } => Answer::IdTaken { id, stored },
        Error::Request(RequestError::NotBookable { key }) => Answer::NotBookable { key },
        Error::Request(RequestError::NotInBlocks { key, .. }) => Answer::NotInBlocks { key },
        error => Answer::Failed(error.to_string()),
    }
}

pub fn closing(settled: Result<Settled, Error>) -> Closing {
    let settlement = match settled {
        Ok(Settled::Now(settlement)) => settlement,
        Ok(Settled::Before) => return Closing::Before,
        Ok(Settled::Expired) => return Closing::Expired,
        Ok(Settled::Unknown) => return Closing::Unknown,
        other => return Closing::Failed(format!("{other:?}")),
    };
    let settling = settlement.amounts().iter().map(|amount| Settling {
        key: amount.key().to_owned(),
        estimated: amount.estimated(),
        used: amount.used(),
        charged: amount.charged(),
        debt: amount.debt(),
    });
    let mut settled: Vec<Settling> = settling.collect();
    settled.sort_by(|a, b| a.key.cmp(&b.key));
    Closing::Now(settled)
}

/// None of a permit that has ended.
pub fn id_of(given: Result<PermitId, Error>) -> Option<String> {
    match given {
        Ok(id) => Some(id.to_string()),
        Err(Error::Request(RequestError::Ended)) => None,
        Err(error) => panic!("{error}"),
    }
}
