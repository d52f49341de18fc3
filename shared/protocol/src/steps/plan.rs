//! The plan that a dry run prints, and that cutover's `main.rs` lists.

use super::{FactKind, steps};
use crate::route::Route;

/// A line of the plan.
pub struct PlanLine {
    /// What will be done.
    pub headline: &'static str,
    /// Whether this plan has the line.
    pub applies: fn(&Plan) -> bool,
    /// What it will be done to; empty where there is nothing to add.
    pub data: fn(&Plan) -> String,
}

/// The names and numbers of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The `postgresql` resource.
    pub source: String,
    /// The CNPG Cluster.
    pub target: String,
    /// How the application is brought to the target.
    pub route: Route,
    /// Patroni's leader.
    pub leader: String,
    /// The workloads and their replica counts.
    pub replicas: String,
    /// The controllers' fields that will be changed.
    pub suspensions: String,
    /// The pods of the source's poolers.
    pub poolers: String,
    /// Client sessions at the source now.
    pub sessions: usize,
    /// The target restarts once after its promotion.
    pub target_pending_restart: bool,
    /// What will lead to the target.
    pub repoint: String,
    /// Name of the receipt.
    pub receipt: String,
    /// Longest time from the block to the point of no return, in seconds.
    pub block_max_seconds: u64,
}

/// The lines of the plan, numbered, and its last one on the rollback.
pub fn plan(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let mut point_of_no_return = 0;
    for (fact, step) in steps() {
        for line in step.plan.iter().filter(|line| (line.applies)(plan)) {
            let (number, data) = (lines.len() + 1, (line.data)(plan));
            let separator = if data.is_empty() { "" } else { ": " };
            lines.push(format!("{number}. {}{separator}{data}", line.headline));
        }
        if fact == FactKind::Promotion {
            point_of_no_return = lines.len();
        }
    }
    lines.push(format!(
        "roll back by itself, where it must, until {point_of_no_return}, at the latest {} s after \
         the block",
        plan.block_max_seconds
    ));
    lines
}
