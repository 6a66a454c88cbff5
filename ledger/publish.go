package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Publisher takes signed checkpoints to where who could alter the log cannot alter them. The promise of the log begins there.
type Publisher interface {
	// Publish gets the newest checkpoint. While a call is under way newer ones replace each other, so that a slow publisher gets
	// fewer and never old ones; after an error, and after a restart, it gets the same one again.
	Publish(ctx context.Context, signed []byte) error
}

// PublisherFunc is a function that is a Publisher.
type PublisherFunc func(ctx context.Context, signed []byte) error

// Publish implements [Publisher].
func (f PublisherFunc) Publish(ctx context.Context, signed []byte) error { return f(ctx, signed) }

// FilePublisher appends checkpoints to a file and syncs it: one on a disk or mount that this host can only append to, best. What a
// crash cut off at its end is written over; a file that ends with anything else is refused. [SplitCheckpoints] reads the file.
func FilePublisher(path string) Publisher { return &filePublisher{path: path, sync: (*os.File).Sync} }

type filePublisher struct {
	path string
	sync func(*os.File) error // tests make it fail
	mu   sync.Mutex           // one write at a time
}

func (p *filePublisher) Publish(_ context.Context, signed []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	fresh, err := appendCheckpoint(f, signed)
	if err == nil {
		err = p.sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil && fresh {
		err = syncDir(filepath.Dir(p.path))
	}
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// appendCheckpoint writes signed behind the last whole checkpoint of f, or over it if it is that one: whether an attempt before
// has reached the disk is not known. fresh says that the same goes for the file's name. Of a file that grows for years it reads the
// end.
func appendCheckpoint(f *os.File, signed []byte) (fresh bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	size := info.Size()
	var tail []byte
	whole, from := 0, size
	for want := int64(16 << 10); whole == 0 && from > 0; want *= 4 {
		from = max(0, size-want)
		tail = make([]byte, size-from)
		if _, err := f.ReadAt(tail, from); err != nil {
			return false, err
		}
		whole = wholeCheckpoints(tail)
	}
	end := from + int64(whole)
	if bytes.HasSuffix(tail[:whole], signed) { // it came again
		end -= int64(len(signed))
		_, err = f.WriteAt(signed, end)
		return end == 0, err
	}
	// A crash leaves a part of a checkpoint, or zeros. A file of anything else is not ours to cut.
	torn, _, _ := bytes.Cut(bytes.Trim(tail[whole:], "\x00\n"), []byte("\n"))
	if !bytes.HasPrefix(signed, torn) {
		return false, fmt.Errorf("%s holds something else than checkpoints", f.Name())
	}
	if end < size {
		if err := f.Truncate(end); err != nil {
			return false, err
		}
	}
	_, err = f.WriteAt(signed, end)
	return end == 0, err
}

// wholeCheckpoints is where the last whole checkpoint in the end of a file ends, zero where there is none.
func wholeCheckpoints(tail []byte) int {
	for n := len(tail); ; {
		n = bytes.LastIndex(tail[:n], []byte("\n\n\u2014 "))
		if n < 0 {
			return 0
		}
		end := n + 2
		for bytes.HasPrefix(tail[end:], []byte("\u2014 ")) {
			line := bytes.IndexByte(tail[end:], '\n')
			if line < 0 {
				break
			}
			end += line + 1
		}
		if end > n+2 {
			return end
		}
	}
}

const (
	publishTimeout  = 30 * time.Second
	publishRetry    = time.Second // doubles up to publishRetryMax
	publishRetryMax = time.Minute
)

// outlet is one publisher with the checkpoint it has yet to get.
type outlet struct {
	p    Publisher
	name string
	log  *slog.Logger

	mu   sync.Mutex // guards next, done and err
	next []byte
	done int64 // size of the last checkpoint that it took
	size int64 // of next
	err  error
	kick chan struct{}
	busy chan struct{} // holds the one call that may be under way
}

func newOutlet(p Publisher, name string, log *slog.Logger) *outlet {
	return &outlet{p: p, name: name, log: log, kick: make(chan struct{}, 1), busy: make(chan struct{}, 1)}
}

// offer never waits.
func (o *outlet) offer(size int64, signed []byte) {
	o.mu.Lock()
	o.next, o.size = signed, size
	o.mu.Unlock()
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

func (o *outlet) run(ctx context.Context) {
	retry := publishRetry
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.kick:
		case <-again:
		}
		again = nil
		if err := o.publish(ctx); err != nil && ctx.Err() == nil {
			o.log.Warn("ledger: a checkpoint is not published", "publisher", o.name, "error", err)
			again = time.After(retry)
			retry = min(2*retry, publishRetryMax)
			continue
		}
		retry = publishRetry
	}
}

// publish gives the newest checkpoint to the publisher, if it has not got it. One that hangs is left behind with its
// context ended, and until it comes back is not called again.
func (o *outlet) publish(ctx context.Context) error {
	o.mu.Lock()
	signed, size := o.next, o.size
	o.mu.Unlock()
	if signed == nil {
		return nil
	}
	select {
	case o.busy <- struct{}{}:
	default:
		return errors.New("the publisher has not come back from an earlier call")
	}
	cctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() { <-o.busy }()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the publisher panicked: %v", p)
			}
		}()
		done <- o.p.Publish(cctx, append([]byte(nil), signed...))
	}()
	var err error
	select {
	case err = <-done:
	case <-cctx.Done():
		err = fmt.Errorf("the publisher took longer than %s", publishTimeout)
	}
	o.note(err, size)
	if err == nil {
		o.mu.Lock()
		if o.size == size {
			o.next = nil
		}
		o.mu.Unlock()
	}
	return err
}

func (o *outlet) note(err error, size int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err = err; err == nil {
		o.done = size
	}
}

// last makes one more attempt at Close, if something is left to publish.
func (o *outlet) last(ctx context.Context) {
	if err := o.publish(ctx); err != nil {
		o.log.Warn("ledger: the last checkpoint is not published", "publisher", o.name, "error", err)
	}
}
