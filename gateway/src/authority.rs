//! What a caller can pass on to others, roles and keys: never more than it has itself.

use platform::{AccountName, DbTransaction};
use sqlx::Row;

use crate::access::{Role, Scopes};
use crate::accounts::{AccountError, Caller, NewKey};

/// A key as it is made: what was asked for, within what its maker and its member have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedKey {
    pub name: String,
    pub scopes: Scopes,
    pub expires_ms: Option<i64>,
    pub member: Option<String>,
    /// The member's role.
    pub role: Option<Role>,
}

impl BoundedKey {
    /// Of the account itself, with nothing to bound it.
    pub fn of_the_account(name: &str) -> Self {
        Self { name: name.to_owned(), scopes: Scopes::ALL, expires_ms: None, member: None, role: None }
    }

    /// What becomes of a new key that `by` asks for. A member's key makes keys of that member, or of another whom its role may name.
    pub async fn new(
        transaction: &mut DbTransaction,
        account: &AccountName,
        new: &NewKey,
        by: Option<&Caller>,
    ) -> Result<Self, AccountError> {
        // The operator's keys bound only keys of the operator's own account.
        let maker = by.filter(|by| by.account == *account);
        let makes = maker.and_then(|maker| maker.member.as_deref());
        let member = new.member.as_deref().or(makes);
        let role = match member {
            None => None,
            Some(member) => Some(
                role_of(transaction, account, member)
                    .await?
                    .ok_or_else(|| AccountError::NoMember(member.to_owned()))?,
            ),
        };
        if let (Some(makes), Some(member), Some(role)) = (makes, member, role)
            && makes != member
            && !role_of(transaction, account, makes).await?.is_some_and(|makers| makers.may_name(role))
        {
            return Err(AccountError::MayNotName { member: member.to_owned(), role: role.name() });
        }
        let (makers, members) =
            (maker.map_or(Scopes::ALL, |maker| maker.scopes), role.map_or(Scopes::ALL, Role::scopes));
        let scopes = new.scopes.unwrap_or_else(|| makers.and(members));
        if !scopes.within(makers) {
            return Err(AccountError::MakerExceeded(makers.names().join(", ")));
        }
        if let Some(role) = role
            && (!scopes.within(members) || scopes.is_empty())
        {
            let scopes = if scopes.is_empty() { makers } else { scopes };
            return Err(AccountError::RoleExceeded { role: role.name(), scopes: scopes.names().join(", ") });
        }
        let expires_ms = match (maker.and_then(|maker| maker.expires_ms), new.expires_ms) {
            (Some(end), Some(asked)) if asked > end => return Err(AccountError::EndExceeded(end / 1000)),
            (end, asked) => asked.or(end),
        };
        Ok(Self { name: new.name.clone(), scopes, expires_ms, member: member.map(str::to_owned), role })
    }
}

/// Whether `by` may do what owners may: an owner's key, one of the account itself, the operator's for another account, or the
/// server. The role is read here, since it may have changed a moment ago.
pub async fn is_owner(
    transaction: &mut DbTransaction,
    account: &AccountName,
    by: Option<&Caller>,
) -> Result<bool, AccountError> {
    match by.filter(|by| by.account == *account).and_then(|by| by.member.as_deref()) {
        None => Ok(true),
        Some(member) => Ok(role_of(transaction, account, member).await? == Some(Role::Owner)),
    }
}

pub async fn role_of(
    transaction: &mut DbTransaction,
    account: &AccountName,
    member: &str,
) -> Result<Option<Role>, AccountError> {
    let found = sqlx::query("SELECT role FROM members WHERE account = $1 AND name = $2")
        .bind(account.as_str())
        .bind(member)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let role: String = row.try_get("role")?;
    Ok(Role::named(&role))
}
