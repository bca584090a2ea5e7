//! The simulated services on a socket, for trying clients we did not write:
//! `cargo run --example simulate -- 127.0.0.1:18080 [SEED] [SERVICE:SWITCH=VALUE…]`.

use std::time::Duration;

use audit_exporter::clock::Clock;
use audit_exporter::simulate::{Faults, Options, World};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:18080".to_owned());
    let seed = arguments.next().map_or(1, |text| text.parse().expect("SEED is a whole number"));
    let mut faults = Faults::default();
    for flag in arguments {
        faults.set(&flag).expect("a fault is SERVICE:SWITCH=VALUE");
    }
    let world = World::new(Options {
        seed,
        clock: Clock::machine(),
        history: Duration::from_hours(2),
        day: Duration::from_mins(10),
        rate: 0.5,
        faults,
        quiet: false,
    });
    let listener = tokio::net::TcpListener::bind(&address).await.expect("the address can be bound");
    println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
    axum::serve(listener, world.router()).await.expect("serving goes on");
}
