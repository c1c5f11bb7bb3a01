package mirror

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// tally counts what is open.
type tally struct {
	blob.Source
	opened, closed int
}

type tallied struct {
	blob.Blob
	t *tally
}

func (t *tally) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := t.Source.Open(ctx, ref)
	t.opened++
	return tallied{b, t}, err
}

func (b tallied) Close() error {
	b.t.closed++
	return b.Blob.Close()
}

func TestOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := &blobtest.Memory{}
		src := &tally{Source: memory}
		one, two := opening{ref: memory.Add([]byte("1"))}, opening{ref: memory.Add([]byte("2"))}
		other := opening{one.ref, hash{1}} // the same, for somebody else
		o := newOpens(src)
		get := func(key opening) *open {
			t.Helper()
			b, err := o.get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		is := func(what string, opened, closed int) {
			t.Helper()
			synctest.Wait()
			if src.opened != opened || src.closed != closed {
				t.Errorf("%s: %d opened, %d closed; want %d, %d", what, src.opened, src.closed, opened, closed)
			}
		}
		a, b := get(one), get(one)
		is("two users", 1, 0)
		c := get(other)
		is("somebody else", 2, 0)
		o.put(a, false)
		time.Sleep(time.Hour)
		is("one user is left", 2, 0)
		o.put(b, false)
		o.put(c, false)
		time.Sleep(lingers - time.Nanosecond)
		b = get(one)
		time.Sleep(time.Hour)
		is("used again just in time", 2, 1)
		o.put(b, false)
		time.Sleep(lingers)
		is("nobody comes", 2, 2)

		a, b = get(two), get(two)
		o.put(a, true)
		is("a use failed, another goes on", 3, 2)
		c = get(two)
		is("opened anew", 4, 2)
		o.put(b, false)
		is("the last use of what failed", 4, 3)
		o.put(c, false)

		d := get(one)
		o.close()
		is("closed, but for one in use", 5, 4)
		o.put(d, false)
		is("which ends", 5, 5)
		o.put(get(one), false)
		is("closed: nothing stays open", 6, 6)
		time.Sleep(time.Hour)
		is("in the end", 6, 6)
		if _, err := o.get(t.Context(), opening{ref: blob.Ref{}}); err == nil {
			t.Error("nothing was opened")
		}
	})
}
