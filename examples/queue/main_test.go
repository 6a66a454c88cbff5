package main

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/apitokentest/adaptertest"
	"github.com/apitoken-go/apitoken/httpauth"
)

func TestRun(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, run(t.Context(), t.TempDir(), &out))
	require.Equal(t, "alice orders tea\ntea: <nil>\n"+"coffee: apitoken: insufficient scope\n", detailless(out.String()))
}

// detailless is a text without what an error tells operators behind its second colon.
func detailless(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ": ", 4)
		b.WriteString(strings.Join(parts[:min(len(parts), 3)], ": ") + "\n")
	}
	return b.String()
}

// queue is a worker that consumes a stream.
type queue struct {
	js    jetstream.JetStream
	auth  *httpauth.Auth
	ended chan outcome
}

// outcome is how a delivery ended.
type outcome struct {
	id      string // of the job
	subject string // whom the job saw; empty: it was not done
	err     error
	request *http.Request
}

func start(t *testing.T, v apitoken.Validator, do func(context.Context) error) *queue {
	t.Helper()
	js, stop, err := startNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(stop)
	q := &queue{js: js, auth: httpauth.New(v, nil), ended: make(chan outcome, 100)}
	saw := ""
	w := &worker{auth: q.auth, needs: apitoken.AllOf(adaptertest.Scope),
		do: func(ctx context.Context, _ []byte) error {
			saw = apitoken.FromContext(ctx).Subject()
			return do(ctx)
		},
		done: func(m jetstream.Msg, _ apitoken.Token, err error) {
			q.ended <- outcome{string(m.Data()), saw, err, request(context.Background(), m)}
			saw = ""
		},
	}
	consuming, err := consume(context.Background(), js, w)
	require.NoError(t, err)
	t.Cleanup(func() {
		consuming.Stop()
		<-consuming.Closed()
	})
	return q
}

func nothing(context.Context) error { return nil }

// send publishes a job and returns its ID.
func (q *queue) send(t *testing.T, h http.Header) string {
	t.Helper()
	m := nats.NewMsg(subject)
	id := rand.Text()
	m.Header, m.Data = nats.Header(h), []byte(id)
	_, err := q.js.PublishMsg(t.Context(), m)
	require.NoError(t, err)
	return id
}

// next is how the next delivery of a job ends.
func (q *queue) next(t *testing.T, id string) outcome {
	t.Helper()
	for {
		select {
		case o := <-q.ended:
			if o.id == id {
				return o
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the job was not delivered")
		}
	}
}

func (q *queue) left(t *testing.T) uint64 {
	t.Helper()
	s, err := q.js.Stream(t.Context(), stream)
	require.NoError(t, err)
	return s.CachedInfo().State.Msgs
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// TestVerdicts: a message gets the verdict that an HTTP request with its headers gets.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
		q := start(t, v, nothing)
		return adaptertest.Adapter{Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
			o := q.next(t, q.send(t, h))
			answer := httptest.NewRecorder()
			if o.err != nil {
				q.auth.Error(answer, o.request, o.err)
			}
			return adaptertest.HTTPVerdict(answer.Result(), o.subject)
		}}
	})
}

func TestARefusedJobLeavesTheQueue(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	q := start(t, svc, nothing)
	for _, h := range []http.Header{{}, bearer("junk"), bearer(svc.Mint("alice")), {"authorization": {"Bearer " + svc.Mint("alice", adaptertest.Scope)}}} {
		q.next(t, q.send(t, h))
	}
	require.Eventually(t, func() bool { return q.left(t) == 0 }, 30*time.Second, 10*time.Millisecond)
}

// TestAJobWhoseSessionEndsWhileItWaitsIsNotDone: the token is judged when the job is taken, not when it was sent.
func TestAJobWhoseSessionEndsWhileItWaitsIsNotDone(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	release := make(chan struct{})
	q := start(t, svc, func(context.Context) error { <-release; return nil })
	first := q.send(t, bearer(svc.Mint("bob", adaptertest.Scope)))
	second := q.send(t, bearer(svc.Mint("alice", adaptertest.Scope)))
	require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject("alice"), "left"))
	close(release)
	require.NoError(t, q.next(t, first).err)
	o := q.next(t, second)
	require.ErrorIs(t, o.err, apitoken.ErrRevoked)
	require.Empty(t, o.subject)
}

// undecided cannot say at first.
type undecided struct {
	*apitokentest.Service
	asked int
}

func (u *undecided) Validate(ctx context.Context, c apitoken.Credential) (apitoken.Token, error) {
	if u.asked++; u.asked == 1 {
		return apitoken.Token{}, &apitoken.Error{Code: apitoken.ErrUnavailable}
	}
	return u.Service.Validate(ctx, c)
}

func TestAJobThatNobodyCanJudgeNowComesAgain(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	q := start(t, &undecided{Service: svc}, nothing)
	id := q.send(t, bearer(svc.Mint("alice", adaptertest.Scope)))
	require.ErrorIs(t, q.next(t, id).err, apitoken.ErrUnavailable)
	o := q.next(t, id)
	require.NoError(t, o.err)
	require.Equal(t, "alice", o.subject)
}

func TestAJobThatFailsComesAgain(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	tries := 0
	q := start(t, svc, func(context.Context) error {
		if tries++; tries == 1 {
			return errors.New("no tea")
		}
		return nil
	})
	id := q.send(t, bearer(svc.Mint("alice", adaptertest.Scope)))
	require.ErrorContains(t, q.next(t, id).err, "no tea")
	require.NoError(t, q.next(t, id).err)
}
