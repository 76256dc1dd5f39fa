//! From a plan to a guest that answers.
//!
//! ```text
//!   open /dev/kvm, kernel, image ─► cgroup, netns ─► lazaret-vmm ─► Boot ─► the agent dials ─► Configure
//! ```

use super::{ExitReport, Incoming, Place, Vm, VmError, open_namespace};
use crate::budget::BudgetError;
use crate::config::Config;
use crate::error::Error;
use crate::guest_files::{GuestFileError, open_image, open_kernel};
use crate::network::Journal;
use crate::sandbox::cgroup::{self, Cgroup, CgroupError};
use crate::sandbox::container::spec::NetworkNamespace;
use crate::sandbox::docker::Docker;
use crate::sandbox::docker::disk::{DATA_DISK, DiskError, LaterDisk, open_volume};
use crate::sandbox::docker::socket as docker_socket;
use crate::sandbox::guest::{Guest, Share};
use crate::sandbox::limits::Limits;
use crate::sandbox::network::mode::{NetworkMode, is_host};
use crate::sandbox::network::{NIC_SLOTS, Network};
use crate::sandbox::sizing::Size;
use crate::state::{ProcessId, Record, STATE_ROOT, StateDir};
use crate::volume::VolumeError;
use lazaret_agent_api::agent::ConfigureRequest;
use lazaret_agent_api::agent_ttrpc::AgentClient;
use lazaret_agent_api::{AGENT_PORT, GUEST_CID, SHARED_TAG};
use lazaret_vmm_wire::{Disk, Name, Shared, VmConfig, Vsock};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

/// What every guest is booted with. An oops is a panic, and a panic a reset, so that a guest that is broken ends and is
/// told. The log level keeps the boot's messages from the console, where each costs an exit; warnings still come,
/// those of the first moments over the serial port.
const CMDLINE: &str = "console=hvc0 root=/dev/vda rootfstype=erofs ro init=/sbin/lazaret-agent reboot=k panic=-1 oops=panic loglevel=5 \
     earlyprintk=ttyS0 dummy.numdummies=0";
/// How long the agent may take to answer its first call.
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(20);

/// Everything a guest is started from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub config: Config,
    pub size: Size,
    pub docker: Option<Docker>,
    pub network: NetworkNamespace,
    pub network_mode: NetworkMode,
    pub resolv_conf: Option<PathBuf>,
    pub cgroups_path: Option<String>,
    /// What the host holds the sandbox to from the start of its first process on.
    pub limits: Limits,
    /// The VMM's `oom_score_adj`.
    pub oom_score_adj: i32,
    pub hostname: String,
    pub state: StateDir,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("this host has no /dev/kvm: lazaret needs KVM (`lazaret doctor` tells what to do)")]
    KvmAbsent,
    #[error("cannot open /dev/kvm: {0} (`lazaret doctor` tells what to do)")]
    Kvm(io::Error),
    #[error("the guest's {key}: {source}; install lazaret's guest files, or set {key} in config.toml")]
    GuestFile { key: &'static str, source: GuestFileError },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the Docker socket {}: {source}", path.display())]
    DockerSocket { path: PathBuf, source: io::Error },
    #[error("lazaret-vmm is neither beside the shim nor in PATH; install it, or set vmm in config.toml")]
    VmmAbsent,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("the VM did not start: {0}")]
    Ended(String),
    /// The same, with the files it was started from: what is wrong is most often one of them.
    #[error("the VM did not start: {line} (kernel {}, root image {})", kernel.display(), base_image.display())]
    Refused { line: String, kernel: PathBuf, base_image: PathBuf },
    #[error(
        "the guest's agent did not answer within {0} s of the VM's start; its console is in {path} (see `lazaret logs`)",
        path = .1.display()
    )]
    Silent(u64, PathBuf),
    #[error("the guest's agent refused its configuration: {0}")]
    Configure(ttrpc::Error),
    #[error("the sandbox was ended before its VM had started")]
    Cancelled,
    #[error("{0}")]
    Os(#[from] io::Error),
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        let line = error.to_string();
        match error {
            LaunchError::Cgroup(
                CgroupError::Escapes(_) | CgroupError::Systemd(_) | CgroupError::Limit { .. },
            ) => Self::InvalidArgument(line),
            LaunchError::Disk(DiskError::Volume(VolumeError::Size { .. })) => Self::InvalidArgument(line),
            LaunchError::Disk(DiskError::Volume(VolumeError::Os { source, .. }))
                if source.kind() != io::ErrorKind::StorageFull =>
            {
                Self::Internal(line)
            }
            LaunchError::KvmAbsent
            | LaunchError::Kvm(_)
            | LaunchError::GuestFile { .. }
            | LaunchError::Disk(DiskError::Volume(_) | DiskError::Budget(BudgetError::Exceeded { .. }))
            | LaunchError::VmmAbsent
            | LaunchError::Vm(VmError::Spawn { .. }) => Self::FailedPrecondition(line),
            LaunchError::Silent(..) => Self::DeadlineExceeded(line),
            _ => Self::Internal(line),
        }
    }
}

/// Starts the guest, and listens where its Docker daemon is to be reached from the host, if it is. What has to be undone
/// without this process is in `record`, and on disk, as soon as it exists.
///
/// # Errors
/// [`LaunchError`]; the VM is gone then. [`LaunchError::Cancelled`] as soon as `cancelled` is done.
pub(in crate::sandbox) async fn launch(
    plan: &Plan,
    record: &mut Record,
    cancelled: impl Future<Output = ()>,
) -> Result<(Guest, Option<UnixListener>), LaunchError> {
    let begun = Instant::now();
    let kvm =
        OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| match error.kind() {
            ErrorKind::NotFound => LaunchError::KvmAbsent,
            _ => LaunchError::Kvm(error),
        })?;
    let unfit = |key: &'static str| move |source| LaunchError::GuestFile { key, source };
    let kernel = open_kernel(&plan.config.kernel).map_err(unfit("kernel"))?;
    let base = open_image(&plan.config.base_image).map_err(unfit("base_image"))?;
    let disks_begun = Instant::now();
    let docker = match &plan.docker {
        Some(docker) => docker_disks(docker, plan, record).await?,
        None => Vec::new(),
    };
    let disks = disks_begun.elapsed().as_micros();
    let log_path = plan.state.console_log();
    let console = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&log_path)?;
    let binary = plan.config.vmm_binary().ok_or(LaunchError::VmmAbsent)?;
    let network = network(plan)?;
    let cgroup = make_cgroup(plan, record)?;

    let procs = cgroup.as_ref().map(Cgroup::procs).transpose()?.map(OwnedFd::from);
    let (vm, mut incoming) = Vm::spawn(Place { binary, network, cgroup: procs })?;
    set_oom_score(vm.pid(), plan.oom_score_adj);
    record.vmm = ProcessId::of(i32::try_from(vm.pid()).unwrap_or_default()).ok();
    plan.state.save(record)?;
    let result = async {
        let mut descriptors = vec![
            (Name::Kvm, kvm.as_fd()),
            (Name::Kernel, kernel.as_fd()),
            (Name::ConsoleLog, console.as_fd()),
            (Name::Disk(0), base.as_fd()),
        ];
        descriptors.extend(docker.iter().map(|(name, disk)| (*name, disk.as_fd())));
        vm.boot(vm_config(plan), &descriptors).await?;
        let spawned = begun.elapsed();
        let stream = dialled(plan, &vm, &mut incoming).await?;
        let dialled = begun.elapsed();
        let agent = configure(plan, stream).await?;
        let [ready, spawned, dialled] = [begun.elapsed(), spawned, dialled].map(|time| time.as_millis());
        log::info!(
            "the guest is ready after {ready} ms: disks {disks} us, VMM {spawned} ms, agent {dialled} ms"
        );
        let exported = plan.docker.as_ref().is_some_and(|docker| docker.export);
        let listener = exported.then(|| docker_listener(&plan.state)).transpose()?;
        Ok((agent, listener))
    };
    let result = tokio::select! {
        result = result => result,
        () = cancelled => Err(LaunchError::Cancelled),
    };
    match result {
        Ok((agent, listener)) => {
            let journal = match &plan.network {
                NetworkNamespace::Path(path) => {
                    Some(Journal { file: plan.state.network(), namespace: path.clone() })
                }
                NetworkNamespace::New | NetworkNamespace::Host => None,
            };
            let (queue_pairs, mode) = (vm_config(plan).queue_pairs(), plan.network_mode.clone());
            let network = Network::new(queue_pairs, plan.config.anti_spoofing, journal, mode);
            let disk = plan
                .docker
                .as_ref()
                .and_then(|docker| LaterDisk::of(docker, &plan.config, &plan.state, Path::new(STATE_ROOT)));
            let share = Share { size: plan.size, cgroup, limits: plan.limits.clone(), disk };
            Ok((Guest::new(vm, agent, plan.docker.clone(), network, share), listener))
        }
        Err(error) => {
            let ended = vm.ended();
            vm.stop().await;
            // The VMM knows best why its channel broke.
            let exit_report = ended.borrow().as_ref().map(|exit_report| {
                log::info!("the guest's last console lines: {}", exit_report.console_line());
                exit_report.line()
            });
            let line = match (error, exit_report) {
                (LaunchError::Vm(VmError::Channel(_)), Some(line)) | (LaunchError::Ended(line), _) => line,
                (error, _) => return Err(error),
            };
            let Config { kernel, base_image, .. } = plan.config.clone();
            Err(LaunchError::Refused { line, kernel, base_image })
        }
    }
}

/// The disks of the private Docker daemon that are there from the boot on: its image, and its data's if that is a volume. The
/// VMM is to be the last that has them open, so that a volume is free again with its end.
async fn docker_disks(
    docker: &Docker,
    plan: &Plan,
    record: &mut Record,
) -> Result<Vec<(Name, File)>, LaunchError> {
    let image = open_image(&plan.config.docker_image)
        .map_err(|source| LaunchError::GuestFile { key: "docker_image", source })?;
    let mut disks = vec![(Name::Disk(DATA_DISK - 1), image)];
    if let Some(name) = &docker.volume {
        let root = Path::new(STATE_ROOT);
        let volume = open_volume(name, docker, &plan.config, &plan.state, root, record).await?;
        disks.push((Name::Disk(DATA_DISK), volume));
    }
    Ok(disks)
}

fn docker_listener(state: &StateDir) -> Result<UnixListener, LaunchError> {
    let path = state.docker_socket();
    docker_socket::listen_at(&path).map_err(|source| LaunchError::DockerSocket { path, source })
}

fn vm_config(plan: &Plan) -> VmConfig {
    let extra = plan.config.kernel_args.trim();
    // The guest counts on this order.
    let image = Disk { read_only: true, empty: false };
    let mut disks = vec![image.clone()];
    if let Some(docker) = &plan.docker {
        disks.extend([image, Disk { read_only: false, empty: docker.volume.is_none() }]);
    }
    VmConfig {
        vcpus: u8::try_from(plan.size.vcpus).unwrap_or(u8::MAX),
        memory_mib: u32::try_from(plan.size.memory_mib).unwrap_or(u32::MAX),
        cmdline: format!("{CMDLINE} {extra}").trim_end().into(),
        disks,
        shared: Some(Shared { tag: SHARED_TAG.into(), path: plan.state.shared() }),
        vsock: Some(Vsock { cid: GUEST_CID, accept: vec![AGENT_PORT] }),
        nics: NIC_SLOTS,
    }
}

/// Waits for the agent's dial.
async fn dialled(
    plan: &Plan,
    vm: &Vm,
    incoming: &mut mpsc::Receiver<Incoming>,
) -> Result<OwnedFd, LaunchError> {
    let mut ended = vm.ended();
    let limit = plan.config.boot_timeout_s;
    tokio::select! {
        biased;
        stream = incoming.recv() => match stream {
            Some((AGENT_PORT, stream)) => Ok(stream),
            Some((port, _)) => Err(LaunchError::Ended(format!("the guest dialled port {port}"))),
            None => Err(LaunchError::Ended(reason(&vm.ended().borrow()))),
        },
        exit_report = ended.wait_for(Option::is_some) => Err(LaunchError::Ended(match exit_report {
            Ok(exit_report) => reason(&exit_report),
            Err(_) => reason(&None),
        })),
        () = tokio::time::sleep(Duration::from_secs(limit)) => {
            Err(LaunchError::Silent(limit, plan.state.console_log()))
        }
    }
}

fn reason(exit_report: &Option<ExitReport>) -> String {
    exit_report.as_ref().map_or_else(|| "lazaret-vmm is gone".into(), ExitReport::line)
}

async fn configure(plan: &Plan, stream: OwnedFd) -> Result<AgentClient, LaunchError> {
    let stream = StdUnixStream::from(stream);
    stream.set_nonblocking(true)?;
    let agent = AgentClient::new(Client::new(Socket::from(UnixStream::from_std(stream)?)));
    let mut entropy = vec![0; 64];
    File::open("/dev/urandom")?.read_exact(&mut entropy)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = ConfigureRequest {
        realtime_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        entropy,
        hostname: plan.hostname.clone(),
        docker: plan.docker.as_ref().map(Docker::for_agent).into(),
        ..Default::default()
    };
    let call = agent.configure(ttrpc::context::with_duration(CONFIGURE_TIMEOUT), &request);
    call.await.map_err(LaunchError::Configure)?;
    Ok(agent)
}

/// The namespace to enter, or `None` for a new one. A sandbox never gets the host's: neither by leaving the namespace
/// out, nor by naming the host's own.
fn network(plan: &Plan) -> io::Result<Option<OwnedFd>> {
    if is_host(&plan.network) {
        let has = match plan.network_mode {
            NetworkMode::User(_) => "a user-mode network",
            NetworkMode::Namespace | NetworkMode::None => "loopback only",
        };
        log::warn!("the spec asks for the host's network, which a sandbox never gets: it has {has}");
        return Ok(None);
    }
    match &plan.network {
        NetworkNamespace::Path(path) => open_namespace(path).map(Some),
        NetworkNamespace::New | NetworkNamespace::Host => Ok(None),
    }
}

/// The VMM's cgroup, with the limits of a VM of this size. The guest boots without those of its container: until its first
/// process starts it runs what lazaret has put there, and nothing else.
fn make_cgroup(plan: &Plan, record: &mut Record) -> Result<Option<Cgroup>, LaunchError> {
    let root = Path::new(cgroup::CGROUP_ROOT);
    let Some(cgroups_path) = plan.cgroups_path.as_deref() else {
        log::warn!(
            "the spec names no cgroup: the sandbox stays in the shim's, and the host holds it to no limit"
        );
        return Ok(None);
    };
    if !cgroup::is_v2(root) {
        log::warn!(
            "the host has no cgroup v2 at {}: the sandbox stays in the shim's cgroup, and the host holds it to no limit",
            root.display()
        );
        return Ok(None);
    }
    let cgroup = Cgroup::create(root, cgroups_path)?;
    record.cgroups.clone_from(&cgroup.made);
    plan.state.save(record)?;
    cgroup.limit(&Limits::of_vm(plan.size))?;
    Ok(Some(cgroup))
}

/// Before the VMM has a guest. A score that cannot be set leaves the shim's, which is a protected one.
fn set_oom_score(pid: u32, score: i32) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        log::warn!("lazaret-vmm keeps the shim's OOM score, not the spec's {score}: {error}");
    }
}
