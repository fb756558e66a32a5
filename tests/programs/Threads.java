import java.util.ArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;

/** Threads that share a counter, a lock and a pool, while the collector runs. */
public final class Threads {
    private static long locked;

    public static void main(String[] arguments) throws Exception {
        int threads = Integer.parseInt(arguments[0]);
        AtomicLong counted = new AtomicLong();
        Object lock = new Object();
        try (var pool = new AutoCloseable() {
            final java.util.concurrent.ExecutorService service = Executors.newFixedThreadPool(threads);

            @Override
            public void close() {
                service.shutdown();
            }
        }) {
            ArrayList<Future<Integer>> parts = new ArrayList<>();
            for (int n = 0; n < 4 * threads; n++) {
                parts.add(pool.service.submit(() -> {
                    int sum = 0;
                    for (int i = 0; i < 2000; i++) {
                        counted.incrementAndGet();
                        synchronized (lock) {
                            locked++;
                        }
                        sum += new byte[512].length;
                    }
                    return sum;
                }));
            }
            long sum = 0;
            for (Future<Integer> part : parts) {
                sum += part.get();
            }
            System.gc();
            System.out.println(counted.get() + " " + locked + " " + sum);
        }
    }
}
