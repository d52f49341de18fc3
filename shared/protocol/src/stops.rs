//! What is true when a cutover has stopped, by the last thing on record: said at its end, and told
//! in README by the same words.

use crate::route::Route;

use crate::record::Record;

/// The facts in their order, and what holds from each of them until the next.
const STOPS: [Stop; 10] = [
    Stop {
        after: "nothing",
        happens: |record| record.started.is_none(),
        true_then: "nothing was changed",
    },
    Stop {
        after: "started",
        happens: |record| record.blocked.is_none(),
        true_then: "the application runs on the source; the Zalando operator and whoever else \
            would interfere are kept still",
    },
    Stop {
        after: "blocked",
        happens: |record| record.fenced.is_none(),
        true_then: "the source may refuse writes; the application waits or is scaled to 0",
    },
    Stop {
        after: "fenced",
        happens: |record| record.promotion.is_none(),
        true_then: "the source's server may be stopped; the target has all that was acknowledged \
            before, and is still a standby",
    },
    Stop {
        after: "promotion",
        happens: |record| record.promoted.is_none(),
        true_then: "the source is stopped for good, and the target holds its last record: nothing \
            is missing; the target may be promoting",
    },
    Stop {
        after: "promoted",
        happens: |record| record.routed.is_none(),
        true_then: "the target is a primary whose restart is over, and has taken a write; the \
            application still waits",
    },
    Stop {
        after: "routed",
        happens: |record| {
            record.serving.is_none()
                && record
                    .started
                    .as_ref()
                    .is_some_and(|start| start.route == Route::Config)
        },
        true_then: "the application's ConfigMap leads to the target; its pods are not all back",
    },
    Stop {
        after: "routed",
        happens: |record| record.serving.is_none(),
        true_then: "the source's Services lead to the target; the old poolers may still hold \
            clients back",
    },
    Stop {
        after: "serving",
        happens: |record| record.finished.is_none(),
        true_then: "the application runs on the target; who was kept still may not have been given \
            back, the receipt is not written",
    },
    Stop {
        after: "finished",
        happens: |_| true,
        true_then: "the application runs on the target, the receipt is written",
    },
];

/// A row of the table.
struct Stop {
    /// The last fact on record; a key of the ConfigMap.
    after: &'static str,
    happens: fn(&Record) -> bool,
    true_then: &'static str,
}

/// What is true by this record, and what to do about it.
pub fn words(record: &Record) -> String {
    let stop = stop(record);
    format!(
        "(recorded last: {}) {} → {}",
        stop.after,
        stop.true_then,
        to_do(record)
    )
}

/// The last row holds for every journal, so there is one.
fn stop(record: &Record) -> &'static Stop {
    let [.., last] = &STOPS;
    STOPS
        .iter()
        .find(|stop| (stop.happens)(record))
        .unwrap_or(last)
}

fn to_do(record: &Record) -> &'static str {
    if record.rolled_back.is_some() || record.started.is_none() {
        return "start a cutover when the cause is mended";
    }
    if record.finished.is_some() {
        return "nothing; keep the source as it is: stopped, paused, frozen";
    }
    match record.past_point_of_no_return() {
        false => "start cutover again, it goes on or goes back; or start rollback, it goes back",
        true => "start cutover again, it goes on; there is no way back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rollback::{self as back, RollbackAvailability},
        simulation::every_journal,
    };

    /// The table of README, from the journals that `decide` really leaves on both routes.
    fn table() -> Vec<String> {
        let mut rows = Vec::new();
        for record in every_journal() {
            let stop = stop(&record);
            let back = match back::rollback_availability(&record) {
                RollbackAvailability::Nothing | RollbackAvailability::Possible => "yes",
                RollbackAvailability::TooLate(_) => "no",
            };
            let row = format!(
                "| `{}` | {} | {back} | {} |",
                stop.after,
                stop.true_then,
                to_do(&record)
            );
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows
    }

    #[test]
    fn readme_tells_every_stop_in_the_order_in_which_decide_leaves_them() {
        let readme = include_str!("../../../README.md");
        let table = table();
        assert_eq!(table.len(), STOPS.len(), "{table:#?}");
        let told: Vec<&str> = readme
            .lines()
            .filter(|line| table.iter().any(|row| row == line))
            .collect();
        assert_eq!(told, table, "README should hold:\n{}", table.join("\n"));
    }
}
