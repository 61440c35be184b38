use std::{
    pin::pin,
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use tracing::Span;

use super::*;
use crate::metrics::{QueryLabels, QueryMetrics, QueryMetricsCache};

fn channel(readers: usize) -> Arc<Channel> {
    channel_with(readers, &StreamSettings::default())
}

fn channel_with(readers: usize, settings: &StreamSettings) -> Arc<Channel> {
    let metrics = QueryMetrics::begin(&QueryMetricsCache::default(), QueryLabels::default());
    let observer = QueryObserver::new(metrics, Span::none(), now());
    Arc::new(Channel::new(readers, settings, None, observer))
}

fn reserve(producer: &Producer, size: usize) -> Result<Arc<MemoryPermit>, Interrupt> {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(producer.reserve(size)).as_mut().poll(&mut cx) {
        Poll::Ready(reserved) => reserved,
        Poll::Pending => panic!("no room for {size} bytes"),
    }
}

/// The waker of an executor can own a task, whose drop can use the stream.
#[test]
fn consumer_waker_is_dropped_without_the_lock() {
    struct UsesTheStream(Arc<Channel>);
    impl Wake for UsesTheStream {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for UsesTheStream {
        fn drop(&mut self) {
            self.0.stats();
        }
    }
    let channel = channel(1);
    for _ in 0..3 {
        let waker = Waker::from(Arc::new(UsesTheStream(Arc::clone(&channel))));
        for _ in 0..2 {
            assert!(channel.poll_chunk(&mut Context::from_waker(&waker)).is_pending());
        }
    }
    channel.producer(0).finish(Ok(()));
    assert!(channel.poll_chunk(&mut Context::from_waker(Waker::noop())).is_ready());
}

/// Every received row is read, in the current chunk, in the queue, or discarded.
#[test]
fn stream_stats_are_consistent_in_every_state() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(1);
    let producer = channel.producer(0);
    let block = reserve(&producer, 150).unwrap();
    assert_eq!(channel.stats().time_to_first_row, None);
    for (rows, value_bytes) in [(10, 100), (5, 50)] {
        let block = Arc::clone(&block);
        let chunk = || (Chunk::new(Bytes::new(), rows, value_bytes), block);
        assert!(pin!(producer.push(chunk)).as_mut().poll(&mut cx).is_ready());
    }
    assert!(channel.poll_chunk(&mut cx).is_ready());
    channel.consumed.yielded.add(4);
    channel.consumed.filtered.add(2);
    channel.consumed.failed.add(1);
    channel.consumed.bytes.add(70);

    let check = |state, buffered, discarded| {
        let stats = channel.stats();
        assert_eq!(stats.state, state);
        let rows = (stats.total_rows_yielded, stats.total_rows_filtered, stats.total_rows_failed);
        assert_eq!(rows, (4, 2, 1));
        assert_eq!((stats.total_rows_received, stats.total_bytes_received), (15, 150));
        assert_eq!((stats.items_buffered, stats.bytes_buffered), buffered);
        assert_eq!((stats.total_rows_discarded, stats.chunks_received), (discarded, 2));
        assert!(stats.time_to_first_row.is_some());
    };
    check(StreamState::Running, (8, 80), 0);
    let unread = channel.delivered_but_unread();
    assert_eq!((unread.rows, unread.bytes), (3, 30));
    assert!(channel.close(StreamState::Cancelled, now(), ClosedBy::Control));
    check(StreamState::Cancelled, (3, 30), 5);
    assert!(
        !channel.close(StreamState::Completed, now(), ClosedBy::Consumer),
        "the first end counts"
    );
    check(StreamState::Cancelled, (0, 0), 8);
}

#[tokio::test(start_paused = true)]
async fn blocked_time_is_counted_for_server_or_consumer() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(1);
    let producer = channel.producer(0);
    let pass = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
    let blocked = || {
        let stats = channel.stats();
        [stats.time_blocked_on_server, stats.time_blocked_on_consumer].map(|t| t.as_secs())
    };
    producer.blocked_on_server();
    pass(3).await;
    producer.unblocked();
    pass(1).await;
    assert!(!producer.has_unread());
    pass(1).await;
    assert_eq!(blocked(), [3, 0]);

    let limit = StreamSettings::default().memory();
    let block = reserve(&producer, limit).unwrap();
    let chunk = (Chunk::new(Bytes::new(), 1, 1), block);
    producer.push(|| chunk).await.unwrap();
    assert!(producer.has_unread());
    pass(10).await;
    producer.unblocked();
    pass(1).await;
    assert_eq!(blocked(), [3, 10]);
    {
        let mut room = pin!(producer.reserve(1));
        assert!(room.as_mut().poll(&mut cx).is_pending());
        pass(20).await;
        assert!(channel.poll_chunk(&mut cx).is_ready());
        assert!(room.as_mut().poll(&mut cx).is_ready());
    }
    pass(1).await;
    assert_eq!(blocked(), [3, 30]);

    let block = reserve(&producer, 1).unwrap();
    let chunk = (Chunk::new(Bytes::new(), 1, 1), block);
    producer.push(|| chunk).await.unwrap();
    let mut pause = pin!(channel.pause(None));
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    assert_eq!(producer.permit_read(false), ReadPermit::Paused);
    assert!(pause.as_mut().poll(&mut cx).is_ready());
    producer.blocked_on_server();
    pass(1).await;
    assert!(producer.has_unread());
    pass(1).await;
    assert_eq!(blocked(), [3, 30], "a pause is not counted");
}

#[test]
fn memory_soft_limit_fails_the_stream_above_its_fraction() {
    let settings = StreamSettings {
        max_memory: Some(1000),
        soft_limits: Some((0.5, 0.5)),
        ..Default::default()
    };
    let channel = channel_with(1, &settings);
    let producer = channel.producer(0);
    drop(reserve(&producer, 700).unwrap());
    let mut cx = Context::from_waker(Waker::noop());
    let mut wait_for_consumer = |size| {
        let block = reserve(&producer, size).unwrap();
        let chunk = || (Chunk::new(Bytes::new(), 1, 1), block);
        assert!(pin!(producer.push(chunk)).as_mut().poll(&mut cx).is_ready());
    };
    wait_for_consumer(300);
    // Only one read waits for the consumer, which may be fast.
    drop(reserve(&producer, 300).unwrap());
    wait_for_consumer(200);
    let mut cx = Context::from_waker(Waker::noop());
    let mut third = pin!(producer.reserve(5));
    assert!(third.as_mut().poll(&mut cx).is_pending(), "the consumer runs first");
    let Poll::Ready(Err(Interrupt::Failed(error))) = third.as_mut().poll(&mut cx) else { panic!() };
    assert!(matches!(error, Error::ConsumerLagged { limit: 500, buffered: 500 }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn pause_timeout_does_not_end_a_later_pause() {
    let channel = channel(1);
    let state = || channel.stats().state;
    channel.set_pause_timeout(Some(Duration::from_secs(5)));
    for _ in 0..2 {
        channel.pause(None).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(state(), StreamState::Paused, "the earlier pause ended before its timeout");
        channel.resume();
    }
    channel.pause(None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(state(), StreamState::Running);
}

#[tokio::test(start_paused = true)]
async fn pause_timeout_set_during_a_pause_ends_it() {
    // Without a reader too: then no task exists before the pause.
    for readers in [0, 1] {
        let channel = channel(readers);
        channel.pause(None).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        channel.set_pause_timeout(Some(Duration::from_secs(61)));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(channel.stats().state, StreamState::Paused);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(channel.stats().state, StreamState::Running);
    }
}

/// The task that watches pauses must not keep the channel of a closed stream.
#[tokio::test]
async fn close_during_a_pause_ends_the_task_that_watches_it() {
    let channel = channel(0);
    channel.pause(None).await.unwrap();
    channel.close(StreamState::Cancelled, now(), ClosedBy::Consumer);
    while Arc::strong_count(&channel) > 1 {
        tokio::task::yield_now().await;
    }
}

/// A reader that is ending its transaction stops late. Until then, the others and the pause must
/// not wake each other.
#[test]
fn pause_that_waits_for_one_reader_does_not_wake_the_others_again() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(2);
    let (ending, paused) = (channel.producer(0), channel.producer(1));
    for producer in [&ending, &paused] {
        assert_eq!(producer.permit_read(false), ReadPermit::Granted);
    }
    let mut pause = pin!(channel.pause(None));
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    assert!(pin!(paused.changed()).as_mut().poll(&mut cx).is_ready());
    assert_eq!(paused.permit_read(false), ReadPermit::Paused);
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    assert!(pin!(paused.changed()).as_mut().poll(&mut cx).is_pending());
    ending.finish(Ok(()));
    assert!(pause.as_mut().poll(&mut cx).is_ready());
    channel.close(StreamState::Cancelled, now(), ClosedBy::Consumer);
}

/// Otherwise pausing a stream at its last row would fail because the stream has ended.
#[test]
fn end_of_rows_is_not_reported_during_a_pause() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(1);
    let producer = channel.producer(0);
    assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
    producer.finish(Ok(()));
    let error = Error::Timeout { phase: crate::TimeoutPhase::Query, after: Duration::ZERO };
    producer.finish(Err(error));
    assert!(channel.poll_chunk(&mut cx).is_pending());
    channel.resume();
    assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(None)), "the first end counts");
}

/// It is missing while rows can still arrive and none has. During a pause, this is not known.
#[test]
fn first_row_is_missing_until_it_arrives_or_cannot_arrive() {
    let mut cx = Context::from_waker(Waker::noop());
    let missing = |channel: &Channel| {
        let mut cx = Context::from_waker(Waker::noop());
        pin!(channel.first_row_missing()).as_mut().poll(&mut cx)
    };
    let channel = channel(1);
    let producer = channel.producer(0);
    assert_eq!(missing(&channel), Poll::Ready(Some(Duration::ZERO)));
    assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
    assert_eq!(missing(&channel), Poll::Pending);
    channel.resume();
    assert!(matches!(missing(&channel), Poll::Ready(Some(paused)) if !paused.is_zero()));
    let block = reserve(&producer, 1).unwrap();
    let chunk = || (Chunk::new(Bytes::new(), 1, 1), block);
    assert!(pin!(producer.push(chunk)).as_mut().poll(&mut cx).is_ready());
    assert_eq!(missing(&channel), Poll::Ready(None));
    for end in [
        |channel: &Arc<Channel>| channel.producer(0).finish(Ok(())),
        |channel: &Arc<Channel>| {
            assert!(channel.close(StreamState::Cancelled, now(), ClosedBy::Control))
        },
    ] {
        let channel = self::channel(1);
        end(&channel);
        assert_eq!(missing(&channel), Poll::Ready(None));
    }
}

/// The reader holds rows and waits for room. Room is made, and before the reader runs, the stream
/// is paused.
#[test]
fn pause_waits_for_a_reader_that_was_woken_but_has_not_run() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(1);
    let producer = channel.producer(0);
    let mut reserved = pin!(producer.reserve(1000));
    let Poll::Ready(Ok(block)) = reserved.as_mut().poll(&mut cx) else { panic!() };
    let chunk = || (Chunk::new(Bytes::new(), 1, 0), Arc::clone(&block));
    for _ in 0..channel.max_chunks {
        assert_eq!(producer.permit_read(false), ReadPermit::Granted);
        assert!(pin!(producer.push(chunk)).as_mut().poll(&mut cx).is_ready());
    }
    let mut push = pin!(producer.push(chunk));
    assert!(push.as_mut().poll(&mut cx).is_pending());
    assert!(channel.poll_chunk(&mut cx).is_ready());

    let mut pause = pin!(channel.pause(None));
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    assert!(push.as_mut().poll(&mut cx).is_ready());
    assert_eq!(producer.permit_read(true), ReadPermit::Paused);
    assert!(pause.as_mut().poll(&mut cx).is_pending(), "it holds rows");
    assert_eq!(producer.permit_read(false), ReadPermit::Paused);
    assert!(pause.as_mut().poll(&mut cx).is_ready());
    channel.close(StreamState::Cancelled, now(), ClosedBy::Consumer);
}

/// The counters that the stream writes without the lock are consistent at any time. Under Miri,
/// this tries the orders that the memory model allows.
#[test]
fn stream_stats_are_consistent_while_rows_are_consumed() {
    let channel = channel(1);
    let producer = channel.producer(0);
    let writer = Arc::clone(&channel);
    let counting = std::thread::spawn(move || {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(block)) = pin!(producer.reserve(1000)).poll(&mut cx) else { panic!() };
        for _ in 0..4 {
            let (frames, memory) = (Bytes::new(), Arc::clone(&block));
            let chunk = || (Chunk::new(frames, 3, 30), memory);
            assert!(pin!(producer.push(chunk)).as_mut().poll(&mut cx).is_ready());
            assert!(writer.poll_chunk(&mut cx).is_ready());
            for count in [&writer.consumed.yielded, &writer.consumed.filtered] {
                writer.consumed.bytes.add(10);
                count.add(1);
            }
        }
        writer.close(StreamState::Cancelled, now(), ClosedBy::Consumer);
    });
    loop {
        let stats = channel.stats();
        let consumed = stats.total_rows_yielded + stats.total_rows_filtered;
        let rest = stats.items_buffered + stats.total_rows_discarded;
        assert_eq!(stats.total_rows_received, consumed + rest, "{stats:?}");
        assert!(stats.bytes_buffered <= 120 && stats.total_rows_received <= 12, "{stats:?}");
        if stats.state == StreamState::Cancelled {
            break assert_eq!((consumed, rest), (8, 4));
        }
    }
    counting.join().unwrap();
}

/// A deadline ends the reader while it waits for room. A pause must not wait for it when room is
/// made later.
#[test]
fn pause_does_not_wait_for_a_reader_that_has_ended() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(1);
    let producer = channel.producer(0);
    let limit = StreamSettings::default().memory();
    let mut first = Box::pin(producer.reserve(limit));
    let Poll::Ready(Ok(block)) = first.as_mut().poll(&mut cx) else { panic!() };
    let mut second = Box::pin(producer.reserve(limit));
    assert!(second.as_mut().poll(&mut cx).is_pending());
    drop(second);
    let error = Error::Timeout { phase: crate::TimeoutPhase::Query, after: Duration::ZERO };
    producer.finish(Err(error));
    drop(block);
    assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
}

/// A reader that waits for its server is asked to release its buffer when another reader needs it.
/// This also holds if it was asked before, when the other reader did not need it.
#[test]
fn idle_reader_releases_its_buffer_when_another_needs_it() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(4);
    let [one, two, three, four] = [0, 1, 2, 3].map(|number| channel.producer(number));
    let quarter = StreamSettings::default().memory() / 4;
    let _kept = reserve(&one, 2 * quarter).unwrap();
    let given = reserve(&two, quarter).unwrap();
    let mut in_front = Box::pin(three.reserve(2 * quarter));
    assert!(in_front.as_mut().poll(&mut cx).is_pending());
    assert!(pin!(one.changed()).poll(&mut cx).is_ready() && one.is_memory_short());
    // There is room before the first reader has checked.
    drop(given);
    let mut last = Box::pin(four.reserve(3 * quarter));
    assert!(last.as_mut().poll(&mut cx).is_pending());
    let _ = pin!(one.changed()).poll(&mut cx);
    assert!(!one.is_memory_short());
    assert!(in_front.as_mut().poll(&mut cx).is_ready());
    assert!(last.as_mut().poll(&mut cx).is_pending());
    assert!(pin!(one.changed()).poll(&mut cx).is_ready() && one.is_memory_short());
}

#[test]
fn rows_end_with_the_last_reader() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(3);
    let producers = [0, 1, 2].map(|number| channel.producer(number));
    let mut settled = Box::pin(channel.released());
    for producer in &producers {
        assert!(channel.poll_chunk(&mut cx).is_pending());
        // A reader ends once. The end of its task is not another one.
        producer.finish(Ok(()));
        let error = Error::InvalidState { message: "late" };
        producer.finish(Err(error));
        assert!(settled.as_mut().poll(&mut cx).is_pending());
        producer.release(Ok(()));
    }
    assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(None)));
    assert!(settled.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn reader_error_ends_the_stream_after_the_rows_received() {
    let mut cx = Context::from_waker(Waker::noop());
    let channel = channel(2);
    let [one, two] = [0, 1].map(|number| channel.producer(number));
    let Poll::Ready(Ok(block)) = pin!(one.reserve(1000)).poll(&mut cx) else { panic!() };
    let chunk = || (Chunk::new(Bytes::new(), 1, 0), block);
    assert!(pin!(one.push(chunk)).poll(&mut cx).is_ready());
    assert_eq!(one.permit_read(false), ReadPermit::Granted);
    let mut pause = pin!(channel.pause(None));
    assert!(pause.as_mut().poll(&mut cx).is_pending());
    let error = Error::ConnectionClosed { during: "a test", source: None };
    two.finish(Err(error));
    assert!(pause.as_mut().poll(&mut cx).is_ready(), "no reader is reading");
    assert_eq!(one.permit_read(false), ReadPermit::Closed);
    assert!(matches!(pin!(one.reserve(1)).poll(&mut cx), Poll::Ready(Err(Interrupt::Closed))));
    channel.resume();
    assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(Some(Ok(_)))));
    assert!(matches!(
        channel.poll_chunk(&mut cx),
        Poll::Ready(Some(Err(Error::ConnectionClosed { .. })))
    ));
}
