//! cutover as a black box: no write is lost under load; how it ends when it is killed, when another
//! program competes with it, and when its input is wrong; and what a script without a fence loses.

mod bad_input;
mod conflicting_controllers;
mod disturbed;
mod environment;
mod lost_parts;
mod reach;
mod several_instances;
mod slow_stop;
mod whole;
