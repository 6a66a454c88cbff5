package namespace_test

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const issuer = "https://auth.example.com"

// writer is how one process writes to st.
func writer(t *testing.T, st store.Store) *commit.Writer {
	return &commit.Writer{Store: st, State: follow.New(t.Context(), follow.Config{Store: st, Now: time.Now}, follow.To{})}
}

// open is a service's namespace on st.
func open(t *testing.T, st store.Store, issuer string, life namespace.Life) (*namespace.Space, error) {
	s := new(namespace.Space)
	return s, s.Open(t.Context(), namespace.Config{Writer: writer(t, st), Issuer: issuer, Life: life})
}

// opened is open where nothing may fail.
func opened(t *testing.T, st store.Store, life namespace.Life) *namespace.Space {
	t.Helper()
	s, err := open(t, st, issuer, life)
	require.NoError(t, err)
	return s
}

// put writes a record without asking what was there.
func put(t *testing.T, st store.Store, r store.Record) {
	t.Helper()
	old, err := st.Get(t.Context(), r.Kind, r.ID)
	if err != nil {
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	c := &store.Change{Puts: []store.Put{{Record: r, Expect: old.Version}}}
	rand.Read(c.ID[:])
	_, err = st.Apply(t.Context(), c)
	require.NoError(t, err)
}

func stored(t *testing.T, st store.Store) store.Record {
	t.Helper()
	r, err := st.Get(t.Context(), store.KindMeta, namespace.ID)
	require.NoError(t, err)
	return r
}

// refused checks an error that names a field of the service's configuration.
func refused(t *testing.T, err error, field, why string) {
	t.Helper()
	var e *fault.Error
	require.ErrorAs(t, err, &e)
	require.ErrorIs(t, err, fault.InvalidRequest)
	require.Equal(t, field, e.Field)
	require.Contains(t, e.Detail, why)
}

// The first service on an empty store makes the namespace, and every later one finds the same.
func TestTheFirstServiceMakesTheNamespace(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	first := opened(t, st, namespace.Life{})
	require.True(t, first.Born)
	require.Len(t, first.Name, 32, "16 random bytes in hex")

	second := opened(t, st, namespace.Life{})
	require.False(t, second.Born)
	require.Equal(t, first.Name, second.Name)
	require.NotEqual(t, first.Name, opened(t, memstore.New(), namespace.Life{}).Name, "another store is another namespace")
}

// Processes that start at the same time on an empty store agree on one namespace.
func TestProcessesThatStartTogetherAgree(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	const n = 8
	names := make(chan string, n)
	for range n {
		go func() {
			s := new(namespace.Space)
			if err := s.Open(context.Background(), namespace.Config{Writer: writer(t, st), Issuer: issuer}); err != nil {
				names <- err.Error()
				return
			}
			names <- s.Name
		}()
	}
	first := <-names
	require.Len(t, first, 32)
	for range n - 1 {
		require.Equal(t, first, <-names)
	}
}

// A namespace belongs to one issuer, compared byte for byte.
func TestANamespaceBelongsToOneIssuer(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	opened(t, st, namespace.Life{})
	for _, other := range []string{"https://other.example.com", issuer + "/"} {
		_, err := open(t, st, other, namespace.Life{})
		refused(t, err, "Issuer", issuer)
	}
}

// No service makes a namespace of its own where it might hide what is there.
func TestNoNamespaceIsMadeBesideStrangeRecords(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		there []store.Record
		why   string
	}{
		"records without a namespace": {[]store.Record{{Kind: store.KindRole, ID: "admin", Data: []byte(`{}`)}}, "no namespace"},
		"a copy that has not ended":   {[]store.Record{{Kind: namespace.CopyKind, ID: namespace.CopyID, Data: []byte(`{}`)}}, "Copy"},
		"a service that has moved": {[]store.Record{
			{Kind: store.KindMeta, ID: namespace.ID, Data: []byte(`{"v":1,"issuer":"` + issuer + `","ns":"00112233445566778899aabbccddeeff","history":0,"access":0,"grant":0}`)},
			{Kind: store.KindMeta, ID: namespace.MovedID, Data: []byte(`{}`)},
		}, "moved"},
		"a newer version": {[]store.Record{
			{Kind: store.KindMeta, ID: namespace.ID, Data: []byte(`{"v":2,"issuer":"` + issuer + `","ns":"00112233445566778899aabbccddeeff","history":0,"access":0,"grant":0}`)},
		}, "newer version"},
		"a damaged name": {[]store.Record{
			{Kind: store.KindMeta, ID: namespace.ID, Data: []byte(`{"v":1,"issuer":"` + issuer + `","ns":"short","history":0,"access":0,"grant":0}`)},
		}, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := memstore.New()
			for _, r := range x.there {
				put(t, st, r)
			}
			_, err := open(t, st, issuer, namespace.Life{})
			refused(t, err, "Store", x.why)
		})
	}
	t.Run("one that cannot be read", func(t *testing.T) {
		t.Parallel()
		st := memstore.New()
		put(t, st, store.Record{Kind: store.KindMeta, ID: namespace.ID, Data: []byte(`{"v":1,`)})
		_, err := open(t, st, issuer, namespace.Life{})
		require.ErrorIs(t, err, fault.Unavailable)
	})
}

// Lifetimes are the longest ever configured, in any process and at any time: rules are kept for as long.
func TestLifetimesOnlyGrow(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	long := opened(t, st, namespace.Life{Access: 2 * time.Hour, Grant: time.Hour, Foreign: time.Minute})
	short := opened(t, st, namespace.Life{Access: time.Hour, Grant: 3 * time.Hour, Same: time.Second})
	all := namespace.Life{Access: 2 * time.Hour, Grant: 3 * time.Hour, Foreign: time.Minute, Same: time.Second}
	require.Equal(t, all, short.Life())

	require.Equal(t, namespace.Life{Access: 2 * time.Hour, Grant: time.Hour, Foreign: time.Minute}, long.Life(), "it has not heard of it yet")
	require.NoError(t, long.Changed(stored(t, st)))
	require.Equal(t, all, long.Life())

	// What a process was configured for itself counts, whatever the record says.
	back := stored(t, st)
	back.Data = []byte(`{"v":1,"issuer":"` + issuer + `","ns":"` + long.Name + `","history":0,"access":1,"grant":1}`)
	require.NoError(t, long.Changed(back))
	require.Equal(t, all, long.Life())

	before := stored(t, st).Version
	opened(t, st, namespace.Life{Access: time.Hour})
	require.Equal(t, before, stored(t, st).Version, "a start that changes nothing writes nothing")
}

// While the record cannot be read nobody knows how long rules must be kept, and nothing may be purged.
func TestWhileTheRecordCannotBeReadLifeIsNotSure(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	s := opened(t, st, namespace.Life{Access: time.Hour})
	require.True(t, s.Sure())

	good := stored(t, st)
	bad := good
	bad.Data = []byte(`{"v":1,"later":true}`)
	require.Error(t, s.Changed(bad))
	s.SetAside()
	require.False(t, s.Sure())
	require.Equal(t, time.Hour, s.Life().Access, "what was known stays known")

	require.NoError(t, s.Changed(good))
	require.True(t, s.Sure())
}

// The store's history is accepted once, for all processes, and what else the record says stays.
func TestAHistoryIsAcceptedForAllProcesses(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	s := opened(t, st, namespace.Life{Access: time.Hour})
	require.Zero(t, s.Accepted(), "nobody has accepted one yet")
	require.NoError(t, s.Accept(t.Context(), 7))
	require.Equal(t, uint64(7), s.Accepted())

	next := opened(t, st, namespace.Life{})
	require.Equal(t, uint64(7), next.Accepted())
	require.Equal(t, s.Name, next.Name)
	require.Equal(t, time.Hour, next.Life().Access)
	require.NoError(t, next.Accept(t.Context(), 8))
	require.Equal(t, uint64(8), opened(t, st, namespace.Life{}).Accepted())
}

// racing is a store on which another process is first, a number of times.
type racing struct {
	store.Store
	first int
}

func (r *racing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if r.first > 0 {
		r.first--
		return store.Commit{}, store.ErrConflict
	}
	return r.Store.Apply(ctx, c)
}

// A process that others overtake reads again, and gives up where that does not end.
func TestAProcessThatIsOvertakenReadsAgain(t *testing.T) {
	t.Parallel()
	st := &racing{memstore.New(), commit.Tries - 1}
	s, err := open(t, st, issuer, namespace.Life{})
	require.NoError(t, err)
	st.first = commit.Tries - 1
	require.NoError(t, s.Accept(t.Context(), 1))

	st.first = commit.Tries
	require.ErrorIs(t, s.Accept(t.Context(), 2), fault.Unavailable)
	require.Equal(t, uint64(1), s.Accepted())
	st.first = commit.Tries
	_, err = open(t, st, issuer, namespace.Life{Access: time.Hour})
	require.Error(t, err)
}

// down is a store that does not answer.
type down struct{ store.Store }

var errDown = errors.New("engine: connection lost")

func (down) Get(context.Context, store.Kind, string) (store.Record, error) {
	return store.Record{}, errDown
}

// A store that does not answer is no empty store.
func TestAStoreThatDoesNotAnswerIsNotEmpty(t *testing.T) {
	t.Parallel()
	_, err := open(t, down{memstore.New()}, issuer, namespace.Life{})
	var e *fault.Error
	require.ErrorAs(t, err, &e)
	require.ErrorIs(t, err, fault.Unavailable)
	require.Equal(t, errDown, e.Cause)
}
