//! Whether a neighbour answers, asked now and then for as long as the process runs: the flag of `/readyz` follows it both
//! ways, and the log says when it changes.
//!
//! One loop a neighbour, apart from the work: the parts that use it have patience of their own, and on an idle process none
//! of them would notice.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::readiness::Flag;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// A neighbour that takes longer to answer cannot be worked with.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Keeps `flag` as `probe` says until `shutdown`, which it does not hold up. Returns what it says: `None` once the neighbour
/// answers, otherwise why it does not.
pub(crate) fn keep<E, F, Fut>(
    name: &'static str,
    flag: Flag,
    shutdown: CancellationToken,
    probe: F,
) -> watch::Receiver<Option<String>>
where
    E: Into<anyhow::Error>,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
{
    let (said, heard) = watch::channel(Some("not asked yet".to_owned()));
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(name, &flag, &said, probe) => {}
        }
    });
    heard
}

async fn follow<E, F, Fut>(name: &str, flag: &Flag, said: &watch::Sender<Option<String>>, probe: F)
where
    E: Into<anyhow::Error>,
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    // What was never there is complained of by whoever waits for it.
    let mut was_there = false;
    loop {
        let mut failure = ask(&probe).await;
        if failure.is_some() {
            // Once more: a pooled connection that broke while it was idle says nothing about its server.
            failure = ask(&probe).await;
        }
        match &failure {
            None => flag.up(),
            Some(why) => flag.down(why.as_str()),
        }
        let was_away = said.send_replace(failure.clone()).is_some();
        match failure {
            None if was_there && was_away => info!("{name} answers again"),
            Some(why) if !was_away => warn!("{name} does not answer, not ready until it does: {why}"),
            None | Some(_) => {}
        }
        was_there |= !was_away;
        tokio::time::sleep(EVERY).await;
    }
}

/// Why there is no answer.
async fn ask<E, F, Fut>(probe: &F) -> Option<String>
where
    E: Into<anyhow::Error>,
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    match tokio::time::timeout(ANSWER_MAX, probe()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{:#}", error.into())),
        Err(_) => Some(format!("no answer within {ANSWER_MAX:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;
    use crate::readiness::Readiness;

    #[tokio::test(start_paused = true)]
    async fn the_flag_follows_both_ways() {
        let shutdown = CancellationToken::new();
        let readiness = Readiness::new(shutdown.clone());
        let there = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&there);
        let mut heard = keep("the bell", readiness.flag("bell"), shutdown.clone(), move || {
            std::future::ready(if asked.load(Ordering::Relaxed) { Ok(()) } else { Err(anyhow::anyhow!("not cast")) })
        });
        for answers in [false, true, false, true] {
            there.store(answers, Ordering::Relaxed);
            heard.wait_for(|why| why.as_deref() == (!answers).then_some("not cast")).await.unwrap();
            tokio::task::yield_now().await;
            let missing = if answers { vec![] } else { vec!["bell: not cast".to_owned()] };
            assert_eq!(readiness.missing(), missing);
        }
        shutdown.cancel();
        assert!(heard.changed().await.is_err(), "the loop has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_not_waited_for_and_holds_up_no_stop() {
        let shutdown = CancellationToken::new();
        let readiness = Readiness::new(shutdown.clone());
        let mut heard =
            keep("the bell", readiness.flag("bell"), shutdown.clone(), std::future::pending::<anyhow::Result<()>>);
        heard.wait_for(|why| why.as_deref() == Some("no answer within 2s")).await.unwrap();
        let began = tokio::time::Instant::now();
        shutdown.cancel();
        assert!(heard.changed().await.is_err());
        assert!(began.elapsed() < Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_failure_is_not_believed() {
        let shutdown = CancellationToken::new();
        let readiness = Readiness::new(shutdown.clone());
        let count = Arc::new(AtomicU32::new(0));
        let asked = Arc::clone(&count);
        let mut heard = keep("the bell", readiness.flag("bell"), shutdown.clone(), move || {
            let every_second = asked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            std::future::ready(if every_second { Ok(()) } else { Err(anyhow::anyhow!("cracked")) })
        });
        heard.wait_for(Option::is_none).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(10), heard.wait_for(Option::is_some)).await.is_err());
        shutdown.cancel();
    }
}
