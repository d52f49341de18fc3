//! The real `drive` over the small world, alone: from its start to its end, and with an effect that
//! it is not allowed.

use shared::{
    config::Route,
    error::{Error, ErrorKind, Result},
};

use super::{effects::Versions, world::World as Small};
use crate::{
    decision::Action,
    drive::{Heading, Pace, World, drive},
    journal::{Fact, Journal, Start},
    observation::Observation,
};

struct Driven {
    world: Small,
    /// Writes may not be blocked, beyond half of it.
    forbidden: bool,
    journals: Vec<Journal>,
}

impl Driven {
    fn new(route: Route, forbidden: bool) -> Self {
        Self {
            world: Small::new(route, 0),
            forbidden,
            journals: vec![Journal::default()],
        }
    }
}

impl World for Driven {
    async fn observe(&mut self) -> Result<(Journal, Observation)> {
        while let Some((_, next)) = self.world.course().into_iter().next() {
            self.world = next;
        }
        Ok((self.world.journal(), self.world.look()))
    }

    async fn record(&mut self, fact: Fact) -> Result<Option<Journal>> {
        self.world.record(fact, self.world.version, true);
        self.journals.push(self.world.journal());
        Ok(Some(self.world.journal()))
    }

    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>> {
        if self.forbidden && *action == Action::Block {
            (self.world.paused, self.world.read_only) = (true, true);
            return Err(Error::config(
                "kubernetes api: deployments.apps is forbidden: cannot patch resource \
                 deployments/scale",
            ));
        }
        let versions = Versions::of(&self.world);
        Ok(self.world.perform(action, start, Some(versions)))
    }

    async fn pause(&mut self, _missing: &str, _pace: Pace) {}

    fn stop_asked(&self) -> bool {
        false
    }

    fn heading(&self) -> Heading {
        Heading::Forward
    }
}

/// The journals of a cut that nothing disturbs.
pub fn journals(route: Route) -> Vec<Journal> {
    let mut driven = Driven::new(route, false);
    let limits = driven.world.limits();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(drive(&mut driven, &limits)).unwrap();
    driven.journals
}

#[tokio::test]
async fn undisturbed_it_comes_to_the_cut_on_both_routes() {
    for route in [Route::Config, Route::Service] {
        let mut driven = Driven::new(route, false);
        let limits = driven.world.limits();
        drive(&mut driven, &limits).await.unwrap();
        assert_eq!(driven.world.cut(), None);
        assert_eq!(driven.world.broken(), None);
    }
}

#[tokio::test]
async fn what_it_may_not_do_in_the_block_makes_it_go_back_and_leaves_nobody_blocked() {
    let mut driven = Driven::new(Route::Config, true);
    let limits = driven.world.limits();
    let error = drive(&mut driven, &limits).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("deployments/scale"), "{error}");
    assert_eq!(driven.world.restored(), None);
}
