//! What keys and members may do.

/// A part of the API that a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Inference,
    Adapters,
    FineTuning,
    Billing,
    /// Keys, members, limits, webhooks; for the operator's account also the operators' endpoints.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::Inference, Self::Adapters, Self::FineTuning, Self::Billing, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Adapters => "adapters",
            Self::FineTuning => "fine-tuning",
            Self::Billing => "billing",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// What a path asks for; nothing where any key will do. What is not listed asks for the most.
    pub fn of_path(path: &str, is_read: bool) -> Option<Self> {
        let under =
            |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        let any = |prefixes: &[&str]| prefixes.iter().any(|prefix| under(prefix));
        if path == "/v1/account" || under("/v1/models") {
            return None;
        }
        if any(&["/v1/chat", "/v1/completions"]) {
            return Some(Self::Inference);
        }
        if any(&["/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]) {
            return Some(Self::Adapters);
        }
        if any(&["/v1/files", "/v1/fine_tuning"]) {
            return Some(Self::FineTuning);
        }
        let money = ["usage", "requests", "ledger", "prices", "statements"].map(|part| format!("/v1/account/{part}"));
        if money.iter().any(|prefix| under(prefix))
            || under("/v1/organization")
            || (is_read && under("/v1/account/limits"))
        {
            return Some(Self::Billing);
        }
        Some(Self::Admin)
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub const ALL: Self = Self(0b1_1111);

    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }

    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether all of `self` is in `other`.
    pub const fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn names(self) -> Vec<&'static str> {
        Scope::ALL.into_iter().filter(|scope| self.has(*scope)).map(Scope::name).collect()
    }

    /// From names; the first that is none is the error.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let one = |name: &str| Scope::ALL.into_iter().find(|scope| scope.name() == name).ok_or_else(|| name.to_owned());
        Ok(Self::of(names.into_iter().map(one).collect::<Result<Vec<_>, _>>()?))
    }
}

/// What a member is, which bounds the scopes of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Owner,
    Admin,
    Developer,
    Billing,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Owner, Self::Admin, Self::Developer, Self::Billing];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Billing => "billing",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether a member of this role may make keys for another one of that role.
    pub const fn may_name(self, other: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(other, Self::Owner),
            Self::Developer | Self::Billing => false,
        }
    }

    pub fn scopes(self) -> Scopes {
        match self {
            Self::Owner | Self::Admin => Scopes::ALL,
            Self::Developer => Scopes::of([Scope::Inference, Scope::Adapters, Scope::FineTuning]),
            Self::Billing => Scopes::of([Scope::Billing]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_paths() {
        let cases = [
            ("/v1/chat/completions", false, Some(Scope::Inference)),
            ("/v1/completions", false, Some(Scope::Inference)),
            ("/v1/models", true, None),
            ("/v1/models/a/b@3", true, None),
            ("/v1/adapters", true, Some(Scope::Adapters)),
            ("/v1/adapters/a/b/download", true, Some(Scope::Adapters)),
            ("/v1/load_lora_adapter", false, Some(Scope::Adapters)),
            ("/v1/fine_tuning/jobs", false, Some(Scope::FineTuning)),
            ("/v1/account", true, None),
            ("/v1/account/requests", true, Some(Scope::Billing)),
            ("/v1/account/statements/2026-11", true, Some(Scope::Billing)),
            ("/v1/account/limits", true, Some(Scope::Billing)),
            ("/v1/account/limits", false, Some(Scope::Admin)),
            ("/v1/account/keys", true, Some(Scope::Admin)),
            ("/v1/account/members", true, Some(Scope::Admin)),
            ("/v1/account/audit", true, Some(Scope::Admin)),
            ("/v1/account/webhooks", true, Some(Scope::Admin)),
            ("/v1/account/webhooks/webhook-1/deliveries", true, Some(Scope::Admin)),
            ("/v1/organization/costs", true, Some(Scope::Billing)),
            ("/admin/v1/accounts", true, Some(Scope::Admin)),
            ("/v1/chatter", false, Some(Scope::Admin)),
            ("/v1/whatever/comes", true, Some(Scope::Admin)),
        ];
        for (path, is_read, scope) in cases {
            assert_eq!(Scope::of_path(path, is_read), scope, "{path}");
        }
    }

    #[test]
    fn sets_of_scopes() {
        let some = Scopes::parse(["inference", "billing"]).unwrap();
        assert_eq!(some.names(), ["inference", "billing"]);
        assert!(some.within(Scopes::ALL) && !Scopes::ALL.within(some));
        assert_eq!(some.and(Role::Developer.scopes()).names(), ["inference"]);
        assert_eq!(Scopes::parse(["root"]), Err("root".into()));
        assert_eq!(Scopes::ALL.names().len(), Scope::ALL.len());
    }
}
