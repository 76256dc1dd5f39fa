//! The registers by which a driver finds, sets up and kicks a device (VIRTIO 1.2, 4.2).
//!
//! The status register is a state machine (3.1.1): the driver may only add bits, in order; what it does out of order has
//! no effect and a broken set-up is answered with `DEVICE_NEEDS_RESET`. Nothing a driver writes can do more than that.

use super::worker::{WorkerEnded, WorkerHandle};
use super::{ConfigSpace, Interrupt, Queues, VirtioDevice};
use std::sync::Arc;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"LZRT");
/// Offset of `QueueNotify`, where the doorbells are.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// Features of the rings and the transport.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The registers of one device.
pub struct Transport {
    device_id: u32,
    features: u64,
    acceptable: fn(u64, u64) -> bool,
    config: Arc<ConfigSpace>,
    queues: Vec<Queue>,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
    /// Each serves as many queues as it has doorbells, in order.
    workers: Vec<WorkerHandle>,

    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// Why a transport cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("virtio device {device_id}: queue size {size} is no power of two up to 32768")]
    QueueSize { device_id: u32, size: u16 },
    #[error("virtio device {device_id}: {source}")]
    Worker { device_id: u32, source: WorkerEnded },
}

/// What a driver reads of a device: its id, features, queues and configuration.
pub struct Shape {
    pub id: u32,
    pub features: u64,
    pub config: Arc<ConfigSpace>,
    pub queue_sizes: Vec<u16>,
    /// Whether the device works with this choice, the first argument, of its offer, the second.
    pub acceptable: fn(u64, u64) -> bool,
}

impl Shape {
    #[must_use]
    pub fn of(device: &dyn VirtioDevice) -> Self {
        Self {
            id: device.id(),
            features: device.features(),
            config: Arc::new(ConfigSpace::new(device.config().to_vec())),
            queue_sizes: device.queue_sizes().to_vec(),
            acceptable: |_, _| true,
        }
    }
}

impl Transport {
    /// The registers of the device of this `shape`, whose queues are served through `workers`, each some of them.
    ///
    /// # Errors
    /// [`TransportError::QueueSize`].
    pub fn new(
        shape: Shape,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<Interrupt>,
        workers: Vec<WorkerHandle>,
    ) -> Result<Self, TransportError> {
        let device_id = shape.id;
        let queues = shape
            .queue_sizes
            .iter()
            .map(|size| Queue::new(*size).map_err(|_| TransportError::QueueSize { device_id, size: *size }));
        Ok(Self {
            device_id,
            features: shape.features | COMMON_FEATURES,
            acceptable: shape.acceptable,
            config: shape.config,
            queues: queues.collect::<Result<_, _>>()?,
            memory,
            interrupt,
            workers,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        })
    }

    /// Answers a read at `offset`. Registers are 32 bits wide and aligned; any other read of them gives zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.config.read(offset, data);
        } else if let (Ok(data), Ok(register)) = (<&mut [u8; 4]>::try_from(data), u32::try_from(offset)) {
            *data = self.register(register).to_le_bytes();
        }
    }

    fn register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, self.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| u32::from(queue.ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status,
            // There is no shared memory region: its length reads as -1 (4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.config.generation(),
            _ => 0,
        }
    }

    /// Takes a write at `offset`. No device here has a writable configuration; other widths than 32 bits are ignored.
    ///
    /// # Errors
    /// [`TransportError::Worker`]: the device is gone.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), TransportError> {
        let (Ok(data), Ok(register)) = (<[u8; 4]>::try_from(data), u32::try_from(offset)) else {
            return Ok(());
        };
        let value = u32::from_le_bytes(data);
        match register {
            VIRTIO_MMIO_STATUS => return self.set_status(value),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.in_state(ACKNOWLEDGE | DRIVER) => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY if self.status & DRIVER_OK != 0 => {
                self.ring(usize::try_from(value).unwrap_or(usize::MAX));
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            _ if self.in_state(ACKNOWLEDGE | DRIVER | FEATURES_OK) => self.set_up_queue(register, value),
            _ => {}
        }
        Ok(())
    }

    /// The driver is at exactly this step of its initialisation.
    fn in_state(&self, state: u32) -> bool {
        self.status == state
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn set_up_queue(&mut self, register: u32, value: u32) {
        let Ok(index) = usize::try_from(self.queue_sel) else { return };
        let Some(queue) = self.queues.get_mut(index) else { return };
        match register {
            VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value & 1 != 0),
            // A queue that is in use keeps its place (4.2.2.2).
            _ if queue.ready() => {}
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// 3.1.1: the steps of initialisation, each of which adds one bit.
    fn set_status(&mut self, value: u32) -> Result<(), TransportError> {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        let removed = self.status & !value & !NEEDS_RESET;
        if removed != 0 {
            return Ok(());
        }
        match (self.status, added) {
            (_, FAILED) => self.status |= FAILED,
            // Some drivers add the first two at once.
            (0, ACKNOWLEDGE) => self.status = ACKNOWLEDGE,
            (0, added) if added == ACKNOWLEDGE | DRIVER => self.status = added,
            (ACKNOWLEDGE, DRIVER) => self.status |= DRIVER,
            // Left out when the features are not acceptable: the driver reads the status back (3.1.1 step 6).
            (status, FEATURES_OK) if status == ACKNOWLEDGE | DRIVER && self.features_acceptable() => {
                self.status |= FEATURES_OK;
            }
            (status, DRIVER_OK) if status == ACKNOWLEDGE | DRIVER | FEATURES_OK => return self.activate(),
            _ => {}
        }
        Ok(())
    }

    fn features_acceptable(&self) -> bool {
        let chosen = self.driver_features;
        chosen & !self.features == 0
            && chosen & 1 << VIRTIO_F_VERSION_1 != 0
            && (self.acceptable)(chosen, self.features)
    }

    /// A kick that did not come through KVM's doorbell.
    fn ring(&self, mut queue: usize) {
        for worker in &self.workers {
            match queue.checked_sub(worker.queues()) {
                Some(rest) => queue = rest,
                None => return worker.ring(queue),
            }
        }
    }

    fn activate(&mut self) -> Result<(), TransportError> {
        // A queue outside of the guest's memory would only fail later, and kill the VM; this tells the driver.
        if self.queues.iter().any(|queue| queue.ready() && !queue.is_valid(&*self.memory)) {
            self.status |= NEEDS_RESET;
            return Ok(());
        }
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut running = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let Ok(mut copy) = Queue::try_from(queue.state()) else {
                self.status |= NEEDS_RESET;
                return Ok(());
            };
            copy.set_event_idx(event_idx);
            running.push(copy);
        }
        self.status |= DRIVER_OK;
        let mut running = running.into_iter();
        for worker in &self.workers {
            let own = running.by_ref().take(worker.queues()).collect();
            let queues = Queues::new(Arc::clone(&self.memory), Arc::clone(&self.interrupt), own);
            worker.activate(self.driver_features, queues).map_err(|source| self.gone(source))?;
        }
        Ok(())
    }

    /// 2.4: returns when the device has let go of the driver's memory.
    fn reset(&mut self) -> Result<(), TransportError> {
        if self.status & DRIVER_OK != 0 {
            for worker in &self.workers {
                worker.reset().map_err(|source| self.gone(source))?;
            }
        }
        self.interrupt.acknowledge(u32::MAX);
        self.queues.iter_mut().for_each(QueueT::reset);
        (self.status, self.driver_features, self.queue_sel) = (0, 0, 0);
        (self.device_features_sel, self.driver_features_sel) = (0, 0);
        Ok(())
    }

    fn gone(&self, source: WorkerEnded) -> TransportError {
        TransportError::Worker { device_id: self.device_id, source }
    }
}

/// The 32 bits of `features` that `select` names: 0 is the low half, 1 the high one.
fn half(features: u64, select: u32) -> u32 {
    let [low, high] = halves(features);
    match select {
        0 => low,
        1 => high,
        _ => 0,
    }
}

fn set_half(features: &mut u64, select: u32, value: u32) {
    let [low, high] = halves(*features);
    *features = match select {
        0 => u64::from(high) << 32 | u64::from(value),
        1 => u64::from(value) << 32 | u64::from(low),
        _ => return,
    };
}

fn halves(features: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
