//! The handlers that come with every executor.

mod health;
mod test;

use carillon_store::Store;
use carillon_stream::Redis;

use crate::handler::Registry;

/// The built-in handlers.
pub fn built_in(store: &Store, redis: &Redis, queues: &[String]) -> Registry {
    let registry = Registry::new()
        .with("health:check", health::Check::new(store.clone(), redis.clone(), queues))
        .with("test:echo", test::Echo)
        .with("test:sleep", test::Sleep { cancellable: true })
        .with("test:stubborn", test::Sleep { cancellable: false })
        .with("test:fail", test::Fail)
        .with("test:panic", test::Panic)
        .with("test:nest", test::Nest)
        .with("test:note", test::Note)
        .with("test:block", test::Block);
    // The death of its executor: not in what is shipped.
    #[cfg(debug_assertions)]
    let registry = registry.with("test:kill", test::Kill);
    registry
}
