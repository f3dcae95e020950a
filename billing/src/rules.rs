//! The ledger's rules: from a command and what stands in the books to entries that sum to zero, or to the rule that refuses it.
//! Pure: no clock, no database.

/// Nano-dollars.
pub type Nano = i64;

/// Whether an account may spend what it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credit {
    /// Everything is charged, and the account may owe.
    Unlimited,
    Prepaid,
}

impl Credit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::Prepaid => "prepaid",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Unlimited, Self::Prepaid].into_iter().find(|credit| credit.name() == name)
    }
}

/// The books of an account. Their sum is always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Book {
    /// What the account can still reserve.
    Available,
    /// What is reserved.
    Held,
    /// What it has paid for its requests and its storage.
    Revenue,
    /// Where its credit came from.
    Funding,
    /// Credit that ran out of time.
    Expired,
    /// Corrections by the operator.
    Adjustment,
}

impl Book {
    pub const ALL: [Self; 6] =
        [Self::Available, Self::Held, Self::Revenue, Self::Funding, Self::Expired, Self::Adjustment];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Held => "held",
            Self::Revenue => "revenue",
            Self::Funding => "funding",
            Self::Expired => "expired",
            Self::Adjustment => "adjustment",
        }
    }
}

/// What may be done. Amounts are positive but for `Adjust`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Credit given.
    Grant { amount: Nano },
    /// Credit paid for.
    TopUp { amount: Nano },
    /// Sets credit aside under a name of its own.
    Reserve { reservation: String, amount: Nano },
    /// Sets more aside under that name.
    Extend { reservation: String, amount: Nano },
    /// Takes from what is set aside; the rest stays set aside.
    Settle { reservation: String, amount: Nano },
    /// Gives back what is still set aside, and closes the name.
    Void { reservation: String },
    /// Gives back a part of what is set aside; the name stays open.
    Release { reservation: String, amount: Nano },
    /// Takes away credit that ran out of time.
    Expire { amount: Nano },
    /// Gives back what was settled.
    Refund { amount: Nano },
    /// A correction in either direction.
    Adjust { amount: Nano },
    /// Takes what was used without a reservation: storage.
    Charge { amount: Nano },
}

impl Command {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Grant { .. } => "grant",
            Self::TopUp { .. } => "top_up",
            Self::Reserve { .. } => "reserve",
            Self::Extend { .. } => "extend",
            Self::Settle { .. } => "settle",
            Self::Void { .. } => "void",
            Self::Release { .. } => "release",
            Self::Expire { .. } => "expire",
            Self::Refund { .. } => "refund",
            Self::Adjust { .. } => "adjust",
            Self::Charge { .. } => "charge",
        }
    }

    /// Whether it gives the account more than it had, reserved or not.
    pub const fn raises(&self) -> bool {
        match self {
            Self::Grant { .. } | Self::TopUp { .. } | Self::Refund { .. } => true,
            Self::Adjust { amount } => *amount > 0,
            _ => false,
        }
    }

    pub fn reservation(&self) -> Option<&str> {
        match self {
            Self::Reserve { reservation, .. }
            | Self::Extend { reservation, .. }
            | Self::Settle { reservation, .. }
            | Self::Release { reservation, .. }
            | Self::Void { reservation } => Some(reservation),
            _ => None,
        }
    }

    /// What was asked for; 0 for `Void`, which takes what there is.
    pub const fn amount(&self) -> Nano {
        match self {
            Self::Grant { amount }
            | Self::TopUp { amount }
            | Self::Reserve { amount, .. }
            | Self::Extend { amount, .. }
            | Self::Settle { amount, .. }
            | Self::Release { amount, .. }
            | Self::Expire { amount }
            | Self::Refund { amount }
            | Self::Adjust { amount }
            | Self::Charge { amount } => *amount,
            Self::Void { .. } => 0,
        }
    }
}

/// What the rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub credit: Credit,
    pub available: Nano,
    /// Paid for requests and not given back.
    pub revenue: Nano,
    /// The reservation that the command names.
    pub reservation: Option<Reservation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Still held.
    pub amount: Nano,
    pub open: bool,
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the amount must be over 0")]
    BadAmount,
    #[error("there is not enough credit")]
    InsufficientCredit,
    #[error("the reservation exists already")]
    ReservationExists,
    #[error("there is no such reservation")]
    NoReservation,
    #[error("the reservation is closed")]
    ReservationClosed,
    #[error("more than is reserved")]
    OverReserved,
    #[error("more than was charged")]
    OverCharged,
    #[error("the balance would be too large to count")]
    TooLarge,
    /// Not a rule of the ledger: a limit that the account or its operator has set.
    #[error("a spending cap is reached")]
    CapReached,
}

impl Refusal {
    pub const ALL: [Self; 9] = [
        Self::BadAmount,
        Self::InsufficientCredit,
        Self::ReservationExists,
        Self::NoReservation,
        Self::ReservationClosed,
        Self::OverReserved,
        Self::OverCharged,
        Self::TooLarge,
        Self::CapReached,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::BadAmount => "bad_amount",
            Self::InsufficientCredit => "insufficient_credit",
            Self::ReservationExists => "reservation_exists",
            Self::NoReservation => "no_reservation",
            Self::ReservationClosed => "reservation_closed",
            Self::OverReserved => "over_reserved",
            Self::OverCharged => "over_charged",
            Self::TooLarge => "too_large",
            Self::CapReached => "cap_reached",
        }
    }
}

/// Two entries: what one book loses the other gets.
pub type Entries = [(Book, Nano); 2];

/// Largest amount of one command and largest balance: a billion dollars, so that no sum of a few leaves 64 bits.
pub const LARGEST: Nano = 1_000_000_000_000_000_000;

/// Decides a command.
pub fn decide(standing: &Standing, command: &Command) -> Result<Entries, Refusal> {
    use Book::{Adjustment, Available, Expired, Funding, Held, Revenue};
    let open = || match standing.reservation {
        None => Err(Refusal::NoReservation),
        Some(reservation) if !reservation.open => Err(Refusal::ReservationClosed),
        Some(reservation) => Ok(reservation),
    };
    let positive = |amount: Nano| match amount {
        1..=LARGEST => Ok(amount),
        _ => Err(Refusal::BadAmount),
    };
    let spendable = |amount: Nano| match standing.credit {
        Credit::Prepaid if amount > standing.available => Err(Refusal::InsufficientCredit),
        _ => Ok(amount),
    };
    let entries = match command {
        Command::Grant { amount } | Command::TopUp { amount } => moved(positive(*amount)?, Funding, Available),
        Command::Reserve { amount, .. } => {
            let amount = positive(*amount)?;
            if standing.reservation.is_some() {
                return Err(Refusal::ReservationExists);
            }
            moved(spendable(amount)?, Available, Held)
        }
        Command::Extend { amount, .. } => {
            let amount = positive(*amount)?;
            open()?;
            moved(spendable(amount)?, Available, Held)
        }
        Command::Settle { amount, .. } => {
            let amount = positive(*amount)?;
            if amount > open()?.amount {
                return Err(Refusal::OverReserved);
            }
            moved(amount, Held, Revenue)
        }
        Command::Release { amount, .. } => {
            let amount = positive(*amount)?;
            if amount > open()?.amount {
                return Err(Refusal::OverReserved);
            }
            moved(amount, Held, Available)
        }
        Command::Void { .. } => moved(open()?.amount, Held, Available),
        Command::Expire { amount } => match positive(*amount)? {
            amount if amount > standing.available => return Err(Refusal::InsufficientCredit),
            amount => moved(amount, Available, Expired),
        },
        Command::Refund { amount } => match positive(*amount)? {
            amount if amount > standing.revenue => return Err(Refusal::OverCharged),
            amount => moved(amount, Revenue, Available),
        },
        Command::Adjust { amount } => match amount.checked_abs() {
            Some(1..=LARGEST) if *amount < 0 => moved(-spendable(-amount)?, Adjustment, Available),
            Some(1..=LARGEST) => moved(*amount, Adjustment, Available),
            _ => return Err(Refusal::BadAmount),
        },
        Command::Charge { amount } => moved(spendable(positive(*amount)?)?, Available, Revenue),
    };
    let available: Nano = entries.iter().filter(|(book, _)| *book == Available).map(|(_, amount)| amount).sum();
    match standing.available.checked_add(available) {
        Some(after) if after.checked_abs().is_some_and(|after| after <= LARGEST) => Ok(entries),
        _ => Err(Refusal::TooLarge),
    }
}

fn moved(amount: Nano, from: Book, to: Book) -> Entries {
    [(from, -amount), (to, amount)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn standing(available: Nano, reservation: Option<(Nano, bool)>) -> Standing {
        let reservation = match reservation {
            Some((amount, open)) => Some(Reservation { amount, open }),
            None => None,
        };
        Standing { credit: Credit::Prepaid, available, revenue: 30, reservation }
    }

    #[test]
    fn table_of_rules() {
        use Book::{Adjustment, Available, Expired, Funding, Held, Revenue};
        let r = || "r".to_owned();
        let poor = standing(10, None);
        let open = standing(10, Some((20, true)));
        let closed = standing(10, Some((0, false)));
        let unlimited = Standing { credit: Credit::Unlimited, ..poor };
        let cases = [
            ("a grant funds", poor, Command::Grant { amount: 5 }, Ok([(Funding, -5), (Available, 5)])),
            ("so does a top-up", poor, Command::TopUp { amount: 5 }, Ok([(Funding, -5), (Available, 5)])),
            ("nothing is no amount", poor, Command::Grant { amount: 0 }, Err(Refusal::BadAmount)),
            ("nor is a debt", poor, Command::TopUp { amount: -1 }, Err(Refusal::BadAmount)),
            ("a billion dollars is the most", poor, Command::Grant { amount: LARGEST }, Err(Refusal::TooLarge)),
            (
                "all that there is can be held",
                poor,
                Command::Reserve { reservation: r(), amount: 10 },
                Ok([(Available, -10), (Held, 10)]),
            ),
            ("and no more", poor, Command::Reserve { reservation: r(), amount: 11 }, Err(Refusal::InsufficientCredit)),
            (
                "an unlimited account may owe",
                unlimited,
                Command::Reserve { reservation: r(), amount: 11 },
                Ok([(Available, -11), (Held, 11)]),
            ),
            (
                "a name is used once",
                open,
                Command::Reserve { reservation: r(), amount: 1 },
                Err(Refusal::ReservationExists),
            ),
            (
                "also when closed",
                closed,
                Command::Reserve { reservation: r(), amount: 1 },
                Err(Refusal::ReservationExists),
            ),
            (
                "more can be held",
                open,
                Command::Extend { reservation: r(), amount: 10 },
                Ok([(Available, -10), (Held, 10)]),
            ),
            (
                "as far as it goes",
                open,
                Command::Extend { reservation: r(), amount: 11 },
                Err(Refusal::InsufficientCredit),
            ),
            ("not under no name", poor, Command::Extend { reservation: r(), amount: 1 }, Err(Refusal::NoReservation)),
            (
                "not under a closed one",
                closed,
                Command::Extend { reservation: r(), amount: 1 },
                Err(Refusal::ReservationClosed),
            ),
            (
                "all that is held can be settled",
                open,
                Command::Settle { reservation: r(), amount: 20 },
                Ok([(Held, -20), (Revenue, 20)]),
            ),
            ("and no more", open, Command::Settle { reservation: r(), amount: 21 }, Err(Refusal::OverReserved)),
            (
                "nothing is settled when closed",
                closed,
                Command::Settle { reservation: r(), amount: 1 },
                Err(Refusal::ReservationClosed),
            ),
            (
                "nothing without a reservation",
                poor,
                Command::Settle { reservation: r(), amount: 1 },
                Err(Refusal::NoReservation),
            ),
            (
                "void gives back what is held",
                open,
                Command::Void { reservation: r() },
                Ok([(Held, -20), (Available, 20)]),
            ),
            (
                "a part of it can be given back",
                open,
                Command::Release { reservation: r(), amount: 20 },
                Ok([(Held, -20), (Available, 20)]),
            ),
            ("and no more", open, Command::Release { reservation: r(), amount: 21 }, Err(Refusal::OverReserved)),
            (
                "nothing of what is closed",
                closed,
                Command::Release { reservation: r(), amount: 1 },
                Err(Refusal::ReservationClosed),
            ),
            ("once", closed, Command::Void { reservation: r() }, Err(Refusal::ReservationClosed)),
            ("what is held does not expire", open, Command::Expire { amount: 11 }, Err(Refusal::InsufficientCredit)),
            ("what is not does", open, Command::Expire { amount: 10 }, Ok([(Available, -10), (Expired, 10)])),
            (
                "what was charged can be given back",
                poor,
                Command::Refund { amount: 30 },
                Ok([(Revenue, -30), (Available, 30)]),
            ),
            ("and no more", poor, Command::Refund { amount: 31 }, Err(Refusal::OverCharged)),
            (
                "a correction goes either way",
                poor,
                Command::Adjust { amount: -10 },
                Ok([(Adjustment, 10), (Available, -10)]),
            ),
            ("as far as there is credit", poor, Command::Adjust { amount: -11 }, Err(Refusal::InsufficientCredit)),
            ("or none is needed", unlimited, Command::Adjust { amount: -15 }, Ok([(Adjustment, 15), (Available, -15)])),
            (
                "storage takes what is not reserved",
                open,
                Command::Charge { amount: 10 },
                Ok([(Available, -10), (Revenue, 10)]),
            ),
            ("and never more", open, Command::Charge { amount: 11 }, Err(Refusal::InsufficientCredit)),
            ("or is owed", unlimited, Command::Charge { amount: 11 }, Ok([(Available, -11), (Revenue, 11)])),
            ("nothing is no charge", poor, Command::Charge { amount: 0 }, Err(Refusal::BadAmount)),
            ("but somewhere", poor, Command::Adjust { amount: 0 }, Err(Refusal::BadAmount)),
            ("and not too far", poor, Command::Adjust { amount: i64::MIN }, Err(Refusal::BadAmount)),
        ];
        for (rule, standing, command, expected) in cases {
            assert_eq!(decide(&standing, &command), expected, "{rule}: {command:?}");
        }
    }
}
