use super::*;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Tells what it is called with; token 0 ends the VM, token 1 removes the watch of token 2.
struct Recorder {
    fds: Vec<EventFd>,
    tokens: Sender<u32>,
}

impl Subscriber for Recorder {
    fn start(&mut self, watches: &mut Watches) -> io::Result<()> {
        (0..).zip(&self.fds).try_for_each(|(token, fd)| watches.set(fd.as_raw_fd(), token, EventSet::IN))
    }

    fn event(&mut self, token: u32, _: EventSet, watches: &mut Watches) -> Result<(), Cause> {
        self.tokens.send(token).unwrap();
        let index = usize::try_from(token).unwrap();
        self.fds[index].read().unwrap();
        match token {
            0 => Err(Cause::Error("token 0".into())),
            1 => watches.remove(self.fds[2].as_raw_fd()).map_err(|error| Cause::Error(error.to_string())),
            _ => Ok(()),
        }
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

#[test]
fn each_subscriber_gets_its_own_events_and_an_error_ends_the_vm() {
    let stop = Stop::new().unwrap();
    let mut event_loop = EventLoop::new(stop.clone()).unwrap();
    let (tokens, first) = channel();
    let first_fds = [event(), event(), event()];
    let fds = first_fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
    event_loop.add(Box::new(Recorder { fds, tokens }));
    let (tokens, second) = channel();
    let second_fds = [event(), event(), event(), event()];
    let fds = second_fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
    event_loop.add(Box::new(Recorder { fds, tokens }));
    let thread = thread::spawn(|| event_loop.run());

    first_fds[2].write(1).unwrap();
    assert_eq!(first.recv(), Ok(2));
    second_fds[3].write(1).unwrap();
    assert_eq!(second.recv(), Ok(3));
    first_fds[0].write(1).unwrap();
    thread.join().unwrap();
    assert_eq!(stop.cause(), Some(&Cause::Error("token 0".into())));
    assert_eq!((first.iter().collect::<Vec<_>>(), second.iter().count()), (vec![0], 0));
}

#[test]
fn an_event_of_a_descriptor_removed_in_the_same_batch_is_not_delivered() {
    let stop = Stop::new().unwrap();
    let mut event_loop = EventLoop::new(stop.clone()).unwrap();
    let (tokens, received) = channel();
    let fds = vec![event(), event(), event()];
    // Both are ready before the loop looks: they come in one batch, in this order.
    fds[1].write(1).unwrap();
    fds[2].write(1).unwrap();
    let end = fds[0].try_clone().unwrap();
    event_loop.add(Box::new(Recorder { fds, tokens }));
    let thread = thread::spawn(|| event_loop.run());
    assert_eq!(received.recv(), Ok(1));
    end.write(1).unwrap();
    thread.join().unwrap();
    assert_eq!(received.iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn the_first_cause_is_the_one_that_counts() {
    let stop = Stop::new().unwrap();
    assert_eq!(stop.cause(), None);
    stop.end(Cause::Reset);
    stop.end(Cause::Requested);
    assert_eq!(stop.cause(), Some(&Cause::Reset));
}
