//! Where tests make the database fail: at a commit, which is the only place where a caller may not know what has happened.
//!
//! Outside of tests there is no plan, and what is left is one look at an empty option for each transaction. It is no trait and no
//! feature of the build, so that what the tests run is what is served.

use std::sync::Arc;
use std::time::Duration;

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written, and the caller is told so.
    Fails,
    /// It is written after so long.
    Stalls(Duration),
    /// It is written, and the connection breaks before the caller hears of it.
    Loses,
}

type Plan = dyn Fn() -> Option<Fault> + Send + Sync;

/// Asked at each commit.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Plan>>);

impl Faults {
    pub fn new(plan: impl Fn() -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(plan)))
    }

    /// `commit` commits when it is polled; what it owns is rolled back where it never is.
    pub(crate) async fn commit<T>(
        &self,
        commit: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let Some(plan) = &self.0 else { return commit.await };
        let broken = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        match plan() {
            None => commit.await,
            Some(Fault::Fails) => Err(broken()),
            Some(Fault::Stalls(time)) => {
                tokio::time::sleep(time).await;
                commit.await
            }
            Some(Fault::Loses) => {
                commit.await?;
                Err(broken())
            }
        }
    }
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Faults(planned)" } else { "Faults(none)" })
    }
}
