package mirror

import (
	"container/list"
	"sync"
)

// table is a map of bounded size: what was put into it longest ago gives way.
// Its methods are safe for concurrent use.
type table[K comparable, V any] struct {
	limit int // constant

	mu    sync.RWMutex // guards the rest
	byKey map[K]*list.Element
	order *list.List // of row[K, V], the newest first
}

type row[K comparable, V any] struct {
	key   K
	value V
}

func newTable[K comparable, V any](limit int) *table[K, V] {
	return &table[K, V]{limit: limit, byKey: make(map[K]*list.Element), order: list.New()}
}

func (t *table[K, V]) get(k K) (V, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e, ok := t.byKey[k]; ok {
		return e.Value.(row[K, V]).value, true
	}
	var zero V
	return zero, false
}

// put sets a value and makes it the newest.
func (t *table[K, V]) put(k K, v V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[k]; ok {
		e.Value = row[K, V]{k, v}
		t.order.MoveToFront(e)
		return
	}
	t.byKey[k] = t.order.PushFront(row[K, V]{k, v})
	if t.order.Len() > t.limit {
		oldest := t.order.Remove(t.order.Back()).(row[K, V])
		delete(t.byKey, oldest.key)
	}
}

// add puts a value where there is none, and reports whether there was none.
func (t *table[K, V]) add(k K, v V) bool {
	if _, ok := t.get(k); ok {
		return false
	}
	t.put(k, v)
	return true
}

func (t *table[K, V]) remove(k K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[k]; ok {
		t.order.Remove(e)
		delete(t.byKey, k)
	}
}
