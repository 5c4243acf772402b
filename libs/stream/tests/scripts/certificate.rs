//! R3 and R4: who leads this Redis, and whether what it holds may be trusted.

use anyhow::Result;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_stream::leader::{Announced, Certified, Published};

use crate::bench::{Bench, FIRST, TERM, ids, lines};

#[tokio::test]
async fn r3_an_empty_redis_challenges_whoever_announces_a_term() -> Result<()> {
    let bench = Bench::empty().await?;
    let standing = bench.challenged(7, "red").await?;
    assert_eq!((standing.last, standing.doubt), (0, 0));
    let again = bench.challenged(8, "blue").await?;
    assert_eq!(again.replid, standing.replid);
    assert_eq!((bench.ctl("term")?.as_deref(), bench.ctl("challenge")?.as_deref()), (Some("8"), Some("blue")));
    let state = bench.redis.state(&lines()).await?;
    assert_eq!((state.certified, state.term, state.last, state.lengths), (false, 8, 0, vec![0, 0]));
    Ok(())
}

#[tokio::test]
async fn r3_an_older_term_is_stale_and_changes_nothing() -> Result<()> {
    let bench = Bench::empty().await?;
    bench.challenged(8, "blue").await?;
    assert_eq!(bench.redis.announce(7, "red", false).await?, Announced::Stale);
    assert_eq!(bench.redis.announce(7, "red", true).await?, Announced::Stale);
    assert_eq!((bench.ctl("term")?.as_deref(), bench.ctl("challenge")?.as_deref()), (Some("8"), Some("blue")));
    Ok(())
}

#[tokio::test]
async fn r3_a_certified_redis_says_what_it_remembers_and_challenges_only_on_demand() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 5, 1).await?;
    let Announced::Certified(standing) = bench.redis.announce(TERM + 1, "red", false).await? else {
        panic!("the certificate does not fit");
    };
    assert_eq!((standing.last, standing.doubt), (FIRST + 5, FIRST));
    assert_eq!(bench.ctl("challenge")?, None);
    let demanded = bench.redis.announce(TERM + 1, "red", true).await?;
    assert_eq!(demanded, Announced::Challenged(standing));
    assert!(bench.redis.state(&lines()).await?.certified, "the certificate stands until it is replaced");
    Ok(())
}

#[tokio::test]
async fn r4_only_the_answer_to_the_last_challenge_of_this_server_certifies() -> Result<()> {
    let bench = Bench::empty().await?;
    let standing = bench.challenged(7, "red").await?;
    bench.challenged(8, "blue").await?;
    let replid = &standing.replid;
    assert_eq!(bench.redis.certify(10, 7, replid, "red", &lines()).await?, Certified::Stale, "an older term");
    assert_eq!(bench.redis.certify(10, 8, replid, "red", &lines()).await?, Certified::Refused, "an old challenge");
    assert_eq!(bench.redis.certify(10, 8, "other", "blue", &lines()).await?, Certified::Refused, "another server");
    assert!(!bench.redis.state(&lines()).await?.certified);
    assert_eq!(bench.redis.certify(10, 8, replid, "blue", &lines()).await?, Certified::Done);
    let state = bench.redis.state(&lines()).await?;
    assert_eq!((state.certified, state.term, state.last), (true, 8, 10));
    let look = bench.redis.look().await?;
    assert_eq!((look.certified, look.doubt), (true, 10));
    assert!(look.certificate_age < crate::bench::PATIENCE, "{:?}", look.certificate_age);
    Ok(())
}

#[tokio::test]
async fn h18_a_late_copy_of_a_certificate_is_refused_also_after_a_wipe() -> Result<()> {
    let bench = Bench::empty().await?;
    let standing = bench.challenged(TERM, "red").await?;
    let send = || bench.redis.certify(FIRST, TERM, &standing.replid, "red", &[]);
    assert_eq!(send().await?, Certified::Done);
    assert_eq!(send().await?, Certified::Refused);
    bench.server.flush_all()?;
    assert_eq!(send().await?, Certified::Refused, "the same server, but it has forgotten");
    assert_eq!(bench.server.command(&["EXISTS", &bench.keys.ctl()])?.number(), Some(0));
    assert_eq!(bench.publish(FIRST + 1, 1).await?, Published::Uncertified);
    bench.challenged(TERM + 1, "blue").await?;
    assert_eq!(send().await?, Certified::Stale, "a frozen leader's");
    Ok(())
}

#[tokio::test]
async fn r4_a_certificate_is_newer_than_all_that_was_appended() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 9, 1).await?;
    let standing = bench.redis.announce(TERM, "red", true).await?;
    let Announced::Challenged(standing) = standing else { panic!("{standing:?}") };
    for low in [FIRST, FIRST + 9] {
        let certified = bench.redis.certify(low, TERM, &standing.replid, "red", &lines()).await?;
        assert_eq!(certified, Certified::Low(FIRST + 9));
    }
    let certified = bench.redis.certify(FIRST + 10, TERM, &standing.replid, "red", &lines()).await?;
    assert_eq!(certified, Certified::Done, "a LOW certificate leaves its challenge to be answered");
    assert_eq!(bench.redis.look().await?.doubt, FIRST + 10);
    Ok(())
}

/// The streams of all lines ever published to count, not only those that the leader names.
#[tokio::test]
async fn r4_a_certificate_is_newer_than_whatever_the_streams_hold_also_foreign_and_emptied_ones() -> Result<()> {
    let bench = Bench::certified().await?;
    let other = Line::new("other", Priority::Medium);
    bench.redis.publish(FIRST + 1, TERM, std::slice::from_ref(&other), &crate::bench::batch(FIRST + 1, 1)).await?;
    let stream = bench.keys.stream(&other);
    bench.server.command(&["XADD", &stream, "5000-1", "e", "by hand"])?;
    bench.server.command(&["XDEL", &stream, "5000-1"])?;
    let Announced::Challenged(standing) = bench.redis.announce(TERM, "red", true).await? else {
        panic!("not challenged");
    };
    let named = &lines()[..1];
    let certify = |number| bench.redis.certify(number, TERM, &standing.replid, "red", named);
    assert_eq!(certify(5_000).await?, Certified::Low(5_000));
    assert_eq!(certify(5_001).await?, Certified::Done);
    Ok(())
}

/// H7: only a certificate puts a group on a stream that exists, and what is read then is doubtful.
#[tokio::test]
async fn h7_a_certificate_creates_missing_groups_from_the_beginning_and_doubts_all_before_it() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2).await?;
    assert_eq!(ids(&bench.read("one", 10).await?).len(), 2);
    bench.destroy_group(0)?;
    bench.certify(FIRST + 2, TERM).await?;
    let read = bench.read("two", 10).await?;
    assert_eq!(ids(&read).len(), 2, "what waits is delivered, at the price of what was delivered before");
    assert!(read.look.certified && read.entries.iter().all(|received| received.id.number <= read.look.doubt));
    Ok(())
}

#[tokio::test]
async fn r4_a_group_that_exists_is_left_where_it_stands() -> Result<()> {
    let bench = Bench::certified().await?;
    bench.publish(FIRST + 1, 2).await?;
    bench.read("one", 10).await?;
    bench.certify(FIRST + 2, TERM).await?;
    assert_eq!(bench.pending(0)?, 2);
    bench.publish(FIRST + 3, 1).await?;
    let read = bench.read("two", 10).await?;
    assert_eq!(ids(&read), [crate::bench::id(FIRST + 3, 1)]);
    assert!(read.entries[0].id.number > read.look.doubt, "and is ordinary");
    Ok(())
}

/// R4: "then a whole pass of R19". A leader that dies in the middle of it, or never heard that its certificate was written, leaves it
/// to the next one.
#[tokio::test]
async fn r19_whether_the_pass_of_a_certificate_is_over_outlives_its_leader() -> Result<()> {
    let bench = Bench::certified().await?;
    let standing = async |term| match bench.redis.announce(term, "next", false).await? {
        Announced::Certified(standing) => anyhow::Ok(standing),
        other => anyhow::bail!("{other:?}"),
    };
    let before = standing(TERM).await?;
    assert_eq!((before.doubt, before.passed), (FIRST, 0), "nobody has made it");
    bench.redis.pass_is_over(TERM, FIRST - 1).await?;
    bench.redis.pass_is_over(TERM - 1, FIRST).await?;
    assert_eq!(standing(TERM).await?.passed, 0, "of another certificate, of another leader");
    bench.redis.pass_is_over(TERM, FIRST).await?;
    assert_eq!(standing(TERM + 1).await?.passed, FIRST);
    bench.certify(FIRST + 7, TERM + 1).await?;
    let after = standing(TERM + 1).await?;
    assert_eq!((after.doubt, after.passed), (FIRST + 7, FIRST), "each certificate asks for one");
    Ok(())
}
