//! The HTTP server.

use crate::world::{Settings, World};
use std::sync::{Arc, Mutex, MutexGuard};

/// A running sandbox; stops when dropped.
#[derive(Debug)]
pub struct Sandbox {
    world: Arc<Mutex<World>>,
    port: u16,
}

impl Sandbox {
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        Ok(Self {
            port: settings.port,
            world: Arc::new(Mutex::new(World::new(settings))),
        })
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
