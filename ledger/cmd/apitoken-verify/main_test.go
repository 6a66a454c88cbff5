package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
)

func TestCommand(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	skey, vkey, err := note.GenerateKey(rand.Reader, "auth.example.com/audit")
	require.NoError(t, err)
	signer, err := note.NewSigner(skey)
	require.NoError(t, err)
	files, err := ledger.OpenDir(file("ledger"), nil)
	require.NoError(t, err)
	defer files.Close()
	led, err := ledger.Open(ledger.Config{Storage: files, Signer: signer, Interval: time.Hour})
	require.NoError(t, err)
	defer led.Close()
	write := func(name string, data []byte) { require.NoError(t, os.WriteFile(file(name), data, 0o600)) }
	add := func(from, to int, name string) {
		for i := from; i < to; i++ {
			require.NoError(t, led.Audit(ctx, apitoken.Event{ID: fmt.Sprintf("e%03d", i), Time: time.UnixMilli(1e12), Type: event.Issued, Subject: "alice"}))
		}
		signed, err := led.Seal(ctx)
		require.NoError(t, err)
		write(name, signed)
	}
	export := func(name string, from, to int64) []byte {
		var out bytes.Buffer
		require.NoError(t, led.Export(ctx, &out, from, to))
		write(name, out.Bytes())
		return out.Bytes()
	}
	add(0, 20, "early")
	add(20, 50, "last")
	all := export("all", 0, -1)
	export("first", 0, 20)
	export("rest", 20, -1)
	export("end", 30, -1)
	write("edited", bytes.Replace(all, []byte("alice"), []byte("carol"), 1))
	write("torn", append(all, `{"v":1,`...))
	early, err := os.ReadFile(file("early"))
	require.NoError(t, err)
	last, err := os.ReadFile(file("last"))
	require.NoError(t, err)
	write("both", append(early, last...))
	write("key", []byte(vkey+"\n"))
	p, err := led.ProveConsistency(ctx, 20, 50)
	require.NoError(t, err)
	proof, err := json.Marshal(p)
	require.NoError(t, err)
	write("proof", proof)
	_, otherKey, err := note.GenerateKey(rand.Reader, "witness.example.org")
	require.NoError(t, err)

	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"-key @KEY -checkpoint D/last D/all", proved, "proved: records 0 to 49 of auth.example.com/audit, by its checkpoint of 50 records and 0 earlier ones"},
		{"-key @KEY -checkpoint D/last -earlier D/early -", proved, "1 earlier"},
		{"-key @KEY -checkpoint D/both D/first D/rest", proved, "1 earlier"},
		{"-key @KEY -checkpoint D/last D/rest", proved, "records 20 to 49"},
		{"-key @KEY -checkpoint D/last -earlier D/early -proof D/proof D/end", proved, "1 earlier"},
		{"-key @KEY -checkpoint D/last -earlier D/early D/end", notChecked, "lies before the export's first record"},
		{"-key @KEY -checkpoint D/last D/edited", tamperedWith, "TAMPERED"},
		{"-key @KEY -checkpoint D/early -earlier D/last D/first", tamperedWith, "older than an earlier checkpoint"},
		{"-key @KEY -checkpoint D/last D/torn", unsealed, "7 bytes of an incomplete one"},
		{"-key @KEY -checkpoint D/last -allow-unsealed D/torn", proved, "not proved: 0 records and 7 bytes"},
		{"-key @KEY -witness " + otherKey + " -checkpoint D/last D/all", tamperedWith, "co-signed by 0"},
		{"-key @KEY -witness " + otherKey + " -quorum 0 -checkpoint D/last D/all", proved, "proved"},
		{"-key " + otherKey + " -checkpoint D/last D/all", tamperedWith, "signature"},
		{"-checkpoint D/last D/all", notChecked, "required"},
		{"-key @KEY D/all", notChecked, "required"},
		{"-key @KEY -checkpoint D/key D/all", notChecked, "checkpoint"},
		{"-key @KEY -checkpoint D/last D/none", notChecked, "no such file"},
		{"-key nonsense -checkpoint D/last D/all", notChecked, "malformed"},
		{"-nonsense", notChecked, "usage"},
		{"-h", proved, "usage"},
	} {
		args := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(c.args, "@KEY", "@"+file("key")), "D/", dir+string(filepath.Separator)))
		var out bytes.Buffer
		require.Equal(t, c.code, run(args, bytes.NewReader(all), &out, &out), "%s: %s", c.args, out.String())
		require.Contains(t, out.String(), c.says, c.args)
	}
}
