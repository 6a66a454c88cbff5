package ledger_test

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
)

// full has every member that a leaf can have.
func full() ledger.Leaf {
	return ledger.Leaf{Pos: 1 << 40, Event: apitoken.Event{
		ID: "01jq", Time: eventTime, Type: event.Alert, OK: true, Reason: "a \"quote\", a \\ and\nlines\x00\x1f", Actor: "ä€😀", ActorIssuer: "https://a.example", Subject: "s", Issuer: "https://i.example", Client: "c", TokenID: "t", Grant: "g",
		Target: apitoken.ByGrant("g").OwnedBy("a;b=c"), Scopes: apitoken.Scopes{"a", "b:c"}, Count: 7,
		Origin: apitoken.Origin{Address: netip.MustParseAddr("2001:db8::1"), UserAgent: "u\u2028<&>", RequestID: "r"}, Extra: map[string]string{"": "", "b": "1", "a": "2"},
	}, SubjectRef: "x", ActorRef: "y", OriginRef: "z", Sealed: []byte{0xff}, SealedSubject: []byte{1, 2}, SealedActor: []byte{1, 2, 3}}
}

func TestLeafHasOneEncoding(t *testing.T) {
	t.Parallel()
	l := full()
	line, err := l.AppendText(nil)
	require.NoError(t, err)
	require.Equal(t, `{"v":1,"pos":1099511627776,"id":"01jq","time":"2026-03-04T05:06:07.089Z","type":"alert","ok":true,`+
		`"reason":"a \"quote\", a \\ and\u000alines\u0000\u001f","actor":"ä€😀","actor_issuer":"https://a.example","subject":"s","issuer":"https://i.example","client":"c","token_id":"t","grant":"g",`+
		`"target":"grant:g;owner=a%3Bb%3Dc","scopes":["a","b:c"],"count":7,"address":"2001:db8::1","user_agent":"u`+"\u2028"+`<&>","request_id":"r",`+
		`"extra":{"":"","a":"2","b":"1"},"subject_ref":"x","actor_ref":"y","origin_ref":"z","sealed":"_w","sealed_subject":"AQI","sealed_actor":"AQID"}`, string(line))
	back, err := ledger.ParseLeaf(line)
	require.NoError(t, err)
	require.Equal(t, l, back)
	require.True(t, json.Valid(line), "any JSON reader takes it")

	// Whatever means the same to a JSON reader, or nearly, is not taken.
	text := string(line)
	for _, swap := range [][2]string{
		{`{"v"`, ` {"v"`}, {`,"id"`, `, "id"`}, {`"v":1`, `"v":1.0`}, {`"v":1`, `"v":2`}, {`1099511627776`, `01099511627776`}, {`1099511627776`, `1.099511627776e12`}, {`1099511627776`, `9007199254740993`},
		{`1099511627776`, `-1`}, {`.089Z`, `.0890Z`}, {`.089Z`, `.089+00:00`}, {`05:06:07`, `25:06:07`}, {`05:06:07`, `05:06:60`}, {`.089Z`, `,089Z`}, {`2026-03-04`, `2026-02-30`},
		{`true`, `True`}, {`true`, `1`}, {`\u000a`, `\n`}, {`\u000a`, `\u000A`}, {`\u001f`, "\x1f"}, {`\"quote`, `\u0022quote`}, {`ä`, `\u00e4`}, {`ä`, "\xe4"}, {`<&>`, `\u003c&>`}, {`\\`, `\/`},
		{`"client":"c",`, `"client":"",`}, {`"client":"c",`, `"client":null,`}, {`"client":"c",`, `"client":"c","client":"c",`}, {`"client":"c",`, `"Client":"c",`},
		{`"subject":"s","issuer":"https://i.example"`, `"issuer":"https://i.example","subject":"s"`}, {`"issuer":"https://i.example"`, `"issuer":""`},
		{`"token_id":"t","grant":"g"`, `"grant":"g","token_id":"t"`}, {`["a","b:c"]`, `[]`}, {`["a","b:c"]`, `["a","b:c",]`}, {`"count":7`, `"count":0`}, {`"count":7`, `"count":-0`}, {`"count":7`, `"count":07`},
		{`2001:db8::1`, `2001:DB8::1`}, {`2001:db8::1`, `2001:db8:0::1`}, {`2001:db8::1`, `2001:db8::1%eth0`}, {`"a":"2","b":"1"`, `"b":"1","a":"2"`}, {`"a":"2"`, `"":"2"`}, {`{"":"","a":"2","b":"1"}`, `{}`},
		{`"_w"`, `"_w=="`}, {`"_w"`, `"_x"`}, {`"_w"`, `"/w"`}, {`"AQID"}`, `"AQID"} `}, {`"AQID"}`, `"AQID"}}`}, {`"AQID"}`, `"AQID","x":1}`}, {`"AQID"}`, `"AQID"`}, {`"AQID"`, `"AQ\u000aID"`},
		{`owner=a%3Bb%3Dc`, `owner=a%3bb%3Dc`}, {`"id":"01jq"`, `"id":""`}, {`"type":"alert"`, `"type":""`},
	} {
		require.Contains(t, text, swap[0])
		_, err := ledger.ParseLeaf([]byte(strings.Replace(text, swap[0], swap[1], 1)))
		require.Error(t, err, "%s for %s", swap[1], swap[0])
	}
	for i := range line {
		_, err := ledger.ParseLeaf(line[:i])
		require.Error(t, err)
	}
}

// TestLeavesFromBeforeIssuersStay: a line of a log from before events named issuers reads and writes as it did.
func TestLeavesFromBeforeIssuersStay(t *testing.T) {
	t.Parallel()
	const old = `{"v":1,"pos":7,"id":"01jq","time":"2026-03-04T05:06:07.089Z","type":"token.revoked","ok":true,"reason":"r","actor":"bob","subject":"bob",` +
		`"client":"web","token_id":"t","grant":"g","target":"subject:bob;issuer=https://partner.example","count":2,"extra":{"a":"b"},"subject_ref":"x","actor_ref":"y"}`
	l, err := ledger.ParseLeaf([]byte(old))
	require.NoError(t, err)
	require.Empty(t, l.Event.Issuer+l.Event.ActorIssuer)
	line, err := l.AppendText(nil)
	require.NoError(t, err)
	require.Equal(t, old, string(line))
}

func TestWhatIsNoRecordIsNotWritten(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*ledger.Leaf){
		"no id":              func(l *ledger.Leaf) { l.Event.ID = "" },
		"no type":            func(l *ledger.Leaf) { l.Event.Type = "" },
		"a year of 5 digits": func(l *ledger.Leaf) { l.Event.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"before the years":   func(l *ledger.Leaf) { l.Event.Time = time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC) },
		"a huge count":       func(l *ledger.Leaf) { l.Event.Count = math.MaxInt },
		"a negative place":   func(l *ledger.Leaf) { l.Pos = -1 },
		"too long":           func(l *ledger.Leaf) { l.Event.Reason = strings.Repeat("x", ledger.MaxLeafBytes) },
	} {
		l := full()
		change(&l)
		_, err := l.AppendText([]byte("kept"))
		require.Error(t, err, what)
	}
	l := full()
	l.Event.Reason, l.Event.Count, l.Event.Address = "\xff\xfe", -3, netip.MustParseAddr("fe80::1%eth0")
	l.Event.Time = l.Event.Time.Add(999 * time.Microsecond).In(time.FixedZone("", 3600))
	line, err := l.AppendText(nil)
	require.NoError(t, err)
	back, err := ledger.ParseLeaf(line)
	require.NoError(t, err)
	require.Equal(t, "\uFFFD", back.Event.Reason)
	require.Equal(t, -3, back.Event.Count)
	require.Equal(t, "fe80::1", back.Event.Address.String())
	require.True(t, back.Event.Time.Equal(eventTime), "in ms, UTC")
}

// FuzzParseLeaf: what is taken is the one encoding of what it says.
func FuzzParseLeaf(f *testing.F) {
	l := full()
	line, err := l.AppendText(nil)
	require.NoError(f, err)
	f.Add(line)
	f.Add([]byte(`{"v":1,"pos":0,"id":"a","time":"2026-03-04T05:06:07.089Z","type":"t","ok":false}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := ledger.ParseLeaf(line)
		if err != nil {
			return
		}
		again, err := l.AppendText(nil)
		if err != nil || !bytes.Equal(line, again) {
			t.Fatalf("two encodings of one record:\n%s\n%s %v", line, again, err)
		}
		if !json.Valid(line) {
			t.Fatalf("taken, and no JSON: %s", line)
		}
	})
}
