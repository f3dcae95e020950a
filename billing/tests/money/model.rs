//! What the ledger should do, said once more and differently: plain sums, in wide integers, without entries or a database.

use std::collections::BTreeMap;

use billing::{Command, Credit, LARGEST, Refusal};

type Wide = i128;

/// What became of a command; `None` where its id stands for another one.
pub type Answer = Option<Result<(), Refusal>>;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Held {
    pub reserved: Wide,
    pub settled: Wide,
    pub given_back: Wide,
    pub closed: bool,
}

impl Held {
    pub fn left(&self) -> Wide {
        self.reserved - self.settled - self.given_back
    }
}

#[derive(Debug, Default, Clone)]
pub struct Model {
    prepaid: bool,
    pub available: Wide,
    pub charged: Wide,
    pub reservations: BTreeMap<String, Held>,
    done: BTreeMap<String, (Command, Result<(), Refusal>)>,
}

impl Model {
    pub fn new(credit: Credit) -> Self {
        Self { prepaid: credit == Credit::Prepaid, ..Self::default() }
    }

    pub fn held(&self) -> Wide {
        self.reservations.values().map(Held::left).sum()
    }

    pub fn apply(&mut self, id: &str, command: &Command) -> Answer {
        if let Some((first, answer)) = self.done.get(id) {
            return (first == command).then_some(*answer);
        }
        let mut after = self.clone();
        let answer = after.try_apply(command);
        if answer.is_ok() {
            *self = after;
        }
        self.done.insert(id.to_owned(), (command.clone(), answer));
        Some(answer)
    }

    /// Leaves sums behind that mean nothing where it refuses.
    fn try_apply(&mut self, command: &Command) -> Result<(), Refusal> {
        let amount = Wide::from(command.amount());
        let largest = Wide::from(LARGEST);
        let either_way = matches!(command, Command::Adjust { .. });
        let has_amount = !matches!(command, Command::Void { .. });
        if has_amount && (amount == 0 || amount.abs() > largest || amount < 0 && !either_way) {
            return Err(Refusal::BadAmount);
        }
        let spends = match command {
            Command::Reserve { reservation, .. } => {
                if self.reservations.contains_key(reservation) {
                    return Err(Refusal::ReservationExists);
                }
                self.reservations.insert(reservation.clone(), Held { reserved: amount, ..Held::default() });
                amount
            }
            Command::Extend { reservation, .. } => {
                self.open(reservation)?.reserved += amount;
                amount
            }
            Command::Settle { reservation, .. } => {
                let held = self.open(reservation)?;
                if amount > held.left() {
                    return Err(Refusal::OverReserved);
                }
                held.settled += amount;
                self.charged += amount;
                0
            }
            Command::Release { reservation, .. } => {
                let held = self.open(reservation)?;
                if amount > held.left() {
                    return Err(Refusal::OverReserved);
                }
                held.given_back += amount;
                -amount
            }
            Command::Void { reservation } => {
                let held = self.open(reservation)?;
                let left = held.left();
                held.given_back += left;
                held.closed = true;
                -left
            }
            Command::Refund { .. } if amount > self.charged => return Err(Refusal::OverCharged),
            Command::Refund { .. } => {
                self.charged -= amount;
                -amount
            }
            Command::Expire { .. } if amount > self.available => return Err(Refusal::InsufficientCredit),
            Command::Expire { .. } => amount,
            Command::Charge { .. } => {
                self.charged += amount;
                amount
            }
            Command::Grant { .. } | Command::TopUp { .. } | Command::Adjust { .. } => -amount,
        };
        if self.prepaid && spends > 0 && spends > self.available {
            return Err(Refusal::InsufficientCredit);
        }
        self.available -= spends;
        if self.available.abs() > largest { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    fn open(&mut self, reservation: &str) -> Result<&mut Held, Refusal> {
        match self.reservations.get_mut(reservation) {
            None => Err(Refusal::NoReservation),
            Some(held) if held.closed => Err(Refusal::ReservationClosed),
            Some(held) => Ok(held),
        }
    }
}
